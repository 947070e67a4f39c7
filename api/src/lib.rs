//! What broker and client share.
