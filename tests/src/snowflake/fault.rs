//! What goes wrong on request: each fault meets the next requests whose statement begins in a certain way.

use std::time::Duration;

/// What happens instead of an answer, or beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// This status, with this body or none; nothing is executed.
    Status(u16, Option<String>),
    /// The connection breaks; nothing is executed.
    LostBefore,
    /// The statement is executed, then the connection breaks.
    LostAfter,
    /// The statement is executed, and the answer comes so much later.
    Held(Duration),
    /// The statement is executed, and the result is not ready for so many looks.
    NotReady(u32),
    /// The answer comes so much later.
    Slow(Duration),
    /// The answer has nothing but what a client cannot do without.
    Bare,
}

impl Fault {
    /// The documented answer to too many requests.
    pub fn too_many() -> Self {
        Self::Status(
            429,
            Some(r#"{"code":"390505","message":"Too many requests."}"#.to_owned()),
        )
    }
}

/// The faults to come.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) down: bool,
    planned: Vec<(String, Fault, u32)>,
}

impl Script {
    pub(super) fn add(&mut self, beginning: &str, fault: Fault, times: u32) {
        self.planned.push((beginning.to_owned(), fault, times));
    }

    /// The fault that this request meets.
    pub(super) fn meet(&mut self, text: &str) -> Option<Fault> {
        let met = self
            .planned
            .iter_mut()
            .find(|(beginning, _, left)| *left > 0 && text.starts_with(beginning.as_str()))?;
        met.2 -= 1;
        Some(met.1.clone())
    }
}
