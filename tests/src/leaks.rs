//! The search for secrets: 16 bytes of one in a row are a find, wherever they stand in it.

use std::collections::HashSet;

const RUN: usize = 16;

/// What is looked for.
#[derive(Debug, Default)]
pub struct Secrets(HashSet<[u8; RUN]>);

impl Secrets {
    /// A text of which no run may be seen anywhere.
    pub fn add(&mut self, secret: impl AsRef<[u8]>) {
        let runs = secret
            .as_ref()
            .windows(RUN)
            .filter_map(|run| <[u8; RUN]>::try_from(run).ok());
        self.0.extend(runs);
    }

    /// Payload and signature of a token, as they are sent; its header holds nothing that is not published.
    pub fn add_token(&mut self, token: &str) {
        for part in token.split('.').skip(1) {
            self.add(part);
        }
    }

    /// What stands there first, with a little of what stands around it.
    pub fn found_in(&self, place: &[u8]) -> Option<String> {
        let at = place
            .windows(RUN)
            .position(|run| <[u8; RUN]>::try_from(run).is_ok_and(|run| self.0.contains(&run)))?;
        let around = &place[at.saturating_sub(60)..(at + 60).min(place.len())];
        Some(String::from_utf8_lossy(around).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_a_secret_is_found_from_any_of_its_bytes_on() {
        let mut secrets = Secrets::default();
        secrets.add_token("header.payload-payload-payload.signature-signature");
        assert!(secrets.found_in(b"..load-payload-pay..").is_some());
        assert!(secrets.found_in(b"..re-signature..").is_none(), "12 bytes only");
        assert!(secrets.found_in(b"..nature-signature").is_some());
    }
}
