//! How an input is broken: bytes, words, ranges, and pieces of other inputs.

use rand::RngExt;
use rand::rngs::StdRng;

/// What readers of text are known to stumble over.
const ODD: [&str; 22] = [
    "\0",
    "\r\n",
    "\t",
    "\u{feff}",
    "\u{202e}",
    "\u{85}",
    "\u{2028}",
    "é",
    "𝒳",
    "\u{301}",
    "{{",
    "{%",
    "{#",
    "'",
    "\"",
    "\\",
    "-1",
    "0",
    "9223372036854775808",
    "1e400",
    "null",
    "---\n",
];

/// Makes inputs of inputs.
pub(super) struct Mutator<'a> {
    rng: StdRng,
    words: &'a [&'a str],
}

impl<'a> Mutator<'a> {
    pub(super) fn new(rng: StdRng, words: &'a [&'a str]) -> Self {
        Self { rng, words }
    }

    /// One of these inputs, broken in one to five places.
    pub(super) fn mutated(&mut self, inputs: &[Vec<u8>], longest: usize) -> Vec<u8> {
        let mut input = self.one_of(inputs).cloned().unwrap_or_default();
        for _ in 0..self.rng.random_range(1..=5) {
            self.mutate(&mut input, inputs);
        }
        input.truncate(longest);
        input
    }

    fn mutate(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        let (start, end) = self.range(input);
        match self.rng.random_range(0..12) {
            0 => self.with_byte(input, |byte, random| byte ^ (1 << (random % 8))),
            1 => self.with_byte(input, |_, random| random),
            2 => self.with_byte(input, |byte, _| byte ^ 0x20),
            3 => self.with_byte(input, |byte, random| byte.wrapping_add(random % 3).wrapping_sub(1)),
            4 => drop(input.drain(start..end)),
            5 => input.truncate(start),
            6 => {
                let words = self.words;
                let word = self.one_of(words).map_or(&b""[..], |word| word.as_bytes()).to_vec();
                input.splice(start..start, word);
            }
            7 => {
                let words = self.words;
                let word = self.one_of(words).map_or(&b""[..], |word| word.as_bytes()).to_vec();
                input.splice(start..end, word);
            }
            8 => {
                let odd = self.one_of(&ODD).map_or(&b""[..], |odd| odd.as_bytes()).to_vec();
                input.splice(start..start, odd);
            }
            9 => {
                let piece = input[start..end].repeat(1 << self.rng.random_range(0..7));
                input.splice(start..start, piece);
            }
            10 => {
                let (from, to) = self.range(input);
                let piece = input[from..to].to_vec();
                input.splice(start..end, piece);
            }
            _ => {
                let other = self.one_of(inputs).cloned().unwrap_or_default();
                let (from, to) = self.range(&other);
                input.splice(start..end, other[from..to].to_vec());
            }
        }
    }

    fn with_byte(&mut self, input: &mut [u8], change: impl FnOnce(u8, u8) -> u8) {
        let random = self.rng.random();
        if !input.is_empty() {
            let at = self.rng.random_range(0..input.len());
            input[at] = change(input[at], random);
        }
    }

    /// A range, mostly a short one, and now and then lines as a whole.
    fn range(&mut self, input: &[u8]) -> (usize, usize) {
        let start = self.rng.random_range(0..=input.len());
        let length = match self.rng.random_range(0..4) {
            0 => 1,
            1 => self.rng.random_range(0..=8),
            2 => self.rng.random_range(0..=input.len()),
            _ => {
                let is_end = |byte: &u8| *byte == b'\n';
                let start = input[..start].iter().rposition(is_end).map_or(0, |at| at + 1);
                let end = input[start..].iter().position(is_end);
                return (start, end.map_or(input.len(), |at| start + at + 1));
            }
        };
        (start, (start + length).min(input.len()))
    }

    fn one_of<'b, T>(&mut self, items: &'b [T]) -> Option<&'b T> {
        (!items.is_empty()).then(|| &items[self.rng.random_range(0..items.len())])
    }
}
