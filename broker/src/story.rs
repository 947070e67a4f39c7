//! The use cases against everything that can go wrong between them: races told one by one, and a model.

mod credentials;
mod model;
mod races;
mod world;
