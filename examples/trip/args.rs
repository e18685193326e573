//! The command line, read by hand.

use std::str::FromStr;

use crate::Result;

/// Words of the command line that are not read yet.
pub struct Args(Vec<String>);

impl Args {
    /// All words.
    pub fn new(words: impl IntoIterator<Item = String>) -> Self {
        Self(words.into_iter().collect())
    }

    /// The first word, if it is no option.
    pub fn word(&mut self) -> Option<String> {
        let is_word = self.0.first().is_some_and(|word| !word.starts_with('-'));
        is_word.then(|| self.0.remove(0))
    }

    /// Whether an option without a value is there.
    pub fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|word| word != name);
        self.0.len() < before
    }

    /// The value of an option, as a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.0.iter().position(|word| word == name) else { return Ok(None) };
        if at + 1 >= self.0.len() {
            return Err(format!("{name} needs a value").into());
        }
        let value = self.0.remove(at + 1);
        self.0.remove(at);
        Ok(Some(value))
    }

    /// The value of an option that must be there.
    pub fn needed(&mut self, name: &str) -> Result<String> {
        self.text(name)?.ok_or_else(|| format!("{name} is missing").into())
    }

    /// The value of an option that is a number.
    pub fn number<T: FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        match self.text(name)? {
            Some(text) => text.parse().map_err(|_| format!("{name} {text}: that is no such number").into()),
            None => Ok(default),
        }
    }

    /// Refuses what nobody has read.
    pub fn end(self) -> Result<()> {
        match self.0.first() {
            Some(word) => {
                Err(format!("{word:?} is not known here; see the top of examples/trip/main.rs").into())
            }
            None => Ok(()),
        }
    }
}
