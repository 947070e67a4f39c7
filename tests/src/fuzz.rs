//! Fuzzing on stable Rust: inputs that are right are broken in many ways, and each must still keep a promise.
//!
//! What guides it is what the code under test says: an input that gets an answer never heard before is kept and broken
//! further. Short runs are the same every time; with `KDBT_LONG` they last that many minutes a target and never repeat.

mod mutate;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::time::{ClockId, clock_gettime};

use self::mutate::Mutator;

/// What is fuzzed.
pub struct Target<'a> {
    /// Its name in the report.
    pub name: &'static str,
    /// Inputs to begin with; most of them right.
    pub seeds: Vec<Vec<u8>>,
    /// Words that mean something to it.
    pub words: &'a [&'a str],
    /// How many inputs a short run tries.
    pub short: u64,
    /// Gives it one input. `Ok`: what it said, so short that it tells kinds of answers apart and not inputs. `Err`:
    /// the promise that it broke. A panic is a broken promise too.
    pub check: &'a dyn Fn(&[u8]) -> Result<String, String>,
}

/// The longest input, in bytes.
const LONGEST: usize = 16 * 1024;
/// How many inputs are kept because of what was said to them.
const MOST_KEPT: usize = 4096;
/// An answer that takes longer than this, every time, is a broken promise too.
const SLOWEST: Duration = Duration::from_secs(2);
/// The sizes between which time may grow, and how often as long it may then take: a line takes 4 times as long, a
/// square 16 times.
const SIZES: (usize, usize) = (12 * 1024, 48 * 1024);
const GROWTH: u32 = 9;
/// Less is not worth being compared.
const WORTH_COMPARING: Duration = Duration::from_millis(20);

impl Target<'_> {
    /// Fuzzes it, and says what it did.
    ///
    /// # Panics
    /// If a promise is broken: with the shortest input found that does it.
    pub fn run(&self) {
        let minutes = std::env::var("KDBT_LONG").ok().map(|text| text.parse().unwrap_or(1));
        let (start, working) = (Instant::now(), processor_time());
        let seed = if minutes.is_some() { rand::random() } else { 0 };
        let mut fuzz = Fuzz::new(self, seed);
        for input in &self.seeds {
            fuzz.feed(input.clone());
        }
        let goes_on = |done: u64| match minutes {
            Some(minutes) => start.elapsed() < Duration::from_secs(60 * minutes),
            None => done < self.short,
        };
        while goes_on(fuzz.done) {
            let input = fuzz.mutator.mutated(&fuzz.kept, LONGEST);
            fuzz.feed(input);
        }
        let (fuzzed, worked) = (start.elapsed(), processor_time().saturating_sub(working));
        self.grows_no_faster_than_its_input();
        eprintln!(
            "fuzz {}: {} inputs in {:.1} s, {:.1} s of them on a processor (seed {seed}), {} kinds of answers, \
             slowest {:.1} ms; growth of time looked at in {:.1} s",
            self.name,
            fuzz.done,
            fuzzed.as_secs_f32(),
            worked.as_secs_f32(),
            fuzz.heard.len(),
            fuzz.slowest.as_secs_f64() * 1000.0,
            start.elapsed().saturating_sub(fuzzed).as_secs_f32()
        );
    }

    /// The answer to one input.
    fn answer(&self, input: &[u8]) -> Result<String, String> {
        catch_unwind(AssertUnwindSafe(|| (self.check)(input))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("it panicked: {}", text.unwrap_or("without a text")))
        })
    }

    /// The time of this thread on a processor that it takes, the best of some tries: other work on the machine adds little.
    fn time(&self, input: &[u8], tries: usize) -> Duration {
        let once = || {
            let start = processor_time();
            let _ = self.answer(input);
            processor_time().saturating_sub(start)
        };
        (0..tries).map(|_| once()).min().unwrap_or_default()
    }

    /// Repeats each word until the input is long, and then four times as long.
    fn grows_no_faster_than_its_input(&self) {
        let odd = ["a", "[", "{", "\"", ".", ",", " ", "\n", "\\", "é"];
        for unit in self.words.iter().chain(&odd).filter(|unit| !unit.is_empty()) {
            let long = |size: usize| unit.repeat(size / unit.len()).into_bytes();
            let (small, large) = (long(SIZES.0), long(SIZES.1));
            let bearable =
                |small: Duration, large: Duration| large < WORTH_COMPARING || large < small.saturating_mul(GROWTH);
            if bearable(self.time(&small, 1), self.time(&large, 1)) {
                continue;
            }
            // Looked at more closely: once is not enough to complain of.
            let (small_time, large_time) = (self.time(&small, 7), self.time(&large, 7));
            assert!(
                bearable(small_time, large_time),
                "{}: {unit:?} repeated takes {small_time:?} for {} bytes and {large_time:?} for {}",
                self.name,
                small.len(),
                large.len()
            );
        }
    }
}

/// How long this thread has been on a processor.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// One run.
struct Fuzz<'a> {
    target: &'a Target<'a>,
    mutator: Mutator<'a>,
    kept: Vec<Vec<u8>>,
    heard: HashSet<String>,
    done: u64,
    slowest: Duration,
}

impl<'a> Fuzz<'a> {
    fn new(target: &'a Target<'a>, seed: u64) -> Self {
        Self {
            target,
            mutator: Mutator::new(StdRng::seed_from_u64(seed), target.words),
            kept: target.seeds.clone(),
            heard: HashSet::new(),
            done: 0,
            slowest: Duration::ZERO,
        }
    }

    fn feed(&mut self, input: Vec<u8>) {
        self.done += 1;
        let start = Instant::now();
        let answer = self.target.answer(&input);
        let took = start.elapsed();
        let took = if took > SLOWEST {
            self.target.time(&input, 3)
        } else {
            took
        };
        self.slowest = self.slowest.max(took);
        match answer {
            Err(broken) => self.fail(input, &broken),
            Ok(_) if took > SLOWEST => panic!("{}: {took:?} for {}", self.target.name, shown(&input)),
            Ok(said) => {
                if self.kept.len() < MOST_KEPT && self.heard.insert(said) {
                    self.kept.push(input);
                }
            }
        }
    }

    /// Takes away what is not needed, and tells.
    fn fail(&mut self, mut input: Vec<u8>, broken: &str) -> ! {
        let mut size = input.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < input.len() {
                let end = (at + size).min(input.len());
                let less = [&input[..at], &input[end..]].concat();
                if self.target.answer(&less).is_err() {
                    input = less;
                } else {
                    at = end;
                }
            }
            size /= 2;
        }
        let broken = self.target.answer(&input).err().unwrap_or_else(|| broken.to_owned());
        panic!("{}: {broken}\ninput: {}", self.target.name, shown(&input));
    }
}

/// The input as a Rust literal, cut where it is very long.
fn shown(input: &[u8]) -> String {
    let text = input.escape_ascii().to_string();
    match text.char_indices().nth(2000) {
        Some((end, _)) => format!("b\"{}\"… ({} bytes)", &text[..end], input.len()),
        None => format!("b\"{text}\""),
    }
}

/// Whether a text repeats this many bytes of another in a row: what an error must never do with a secret.
pub fn repeats(text: &str, secret: &[u8], bytes: usize) -> bool {
    let there: HashSet<&[u8]> = secret.windows(bytes).collect();
    text.as_bytes().windows(bytes).any(|window| there.contains(window))
}

/// An error's text without the digits and the names in it: the kind of answer.
pub fn kind(text: &str) -> String {
    let mut quoted = false;
    let plain = text.chars().filter(|c| {
        if *c == '`' {
            quoted = !quoted;
        }
        !quoted && !c.is_ascii_digit()
    });
    plain.take(160).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(check: &dyn Fn(&[u8]) -> Result<String, String>) -> String {
        let target = Target {
            name: "planted",
            seeds: vec![b"name: value\n".to_vec()],
            words: &["needle"],
            short: 20_000,
            check,
        };
        let panic = catch_unwind(AssertUnwindSafe(|| target.run())).expect_err("nothing was found");
        panic.downcast_ref::<String>().unwrap().clone()
    }

    #[test]
    fn a_planted_fault_is_found_and_told_with_its_shortest_input() {
        let has = |input: &[u8], word: &[u8]| input.windows(word.len()).any(|window| window == word);
        let told = broken(&|input| {
            if has(input, b"needle") {
                Err("a needle".to_owned())
            } else {
                Ok(String::new())
            }
        });
        assert!(told.contains("a needle\ninput: b\"needle\""), "{told}");
        let told = broken(&|input| {
            assert!(!has(input, b"val\n"), "never without its end");
            Ok(String::new())
        });
        assert!(told.contains("it panicked: never"), "{told}");
    }

    #[test]
    fn what_takes_the_square_of_its_input_is_found() {
        let told = broken(&|input| {
            let x = String::from_utf8_lossy(input).matches('.').count() / 8;
            let sum = (0..x * x).fold(0_usize, |sum, n| std::hint::black_box(sum ^ n));
            Ok((sum % 2).to_string())
        });
        assert!(told.contains("\".\" repeated takes"), "{told}");
    }
}
