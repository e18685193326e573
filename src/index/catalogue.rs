//! What the cluster keeps of an index: its versions, which of them answers, and which are to be cleared away.
//!
//! A version is a definition and the rows made by it. The first one answers as soon as it is built. A later one is built
//! beside it, from the same rows of users, and takes its place when that is wanted; the old one's rows are cleared away
//! then. So queries never see an index that is half built, nor half of two definitions.

use serde::{Deserialize, Serialize};

use super::{Definition, Spec};
use crate::types::{Error, Result, Timestamp};

/// A version of an index.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Version {
    /// Counts from 1. No two versions of an index have the same.
    pub number: u32,
    /// Its definition.
    pub spec: Spec,
}

/// An index, as the cluster keeps it under its name.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Catalogued {
    /// No other index ever has the same.
    pub id: u64,
    /// When it was made.
    pub created: Timestamp,
    /// What answers queries; `None` until the first version is built.
    pub active: Option<Version>,
    /// What is being built, or is built and waits to take the active one's place.
    pub building: Option<Version>,
    /// Whether that takes the active one's place by itself once it is built.
    pub swap_when_built: bool,
    /// Whether that is built, and waits to take the active one's place.
    pub is_built: bool,
    /// Why it was built anew by itself the last time; empty where it never was.
    pub restarted: String,
    /// Versions whose rows are to be cleared away.
    pub doomed: Vec<u32>,
    /// It was dropped: once nothing is doomed any more, nothing is left of it.
    pub dropped: bool,
    last_version: u32,
}

impl Catalogued {
    /// A new index, whose first version is to be built. `now` is a fresh timestamp: it makes the id.
    ///
    /// # Errors
    ///
    /// `Invalid` where the definition is wrong.
    pub fn create(spec: Spec, now: Timestamp) -> Result<Self> {
        let definition = Definition::new(now.0, 1, spec)?;
        Ok(Self {
            id: now.0,
            created: now,
            active: None,
            building: Some(Version { number: 1, spec: definition.spec().clone() }),
            swap_when_built: true,
            is_built: false,
            restarted: String::new(),
            doomed: Vec::new(),
            dropped: false,
            last_version: 1,
        })
    }

    /// The version that a rebuild behind version `after` has made, if it was done already: by this definition, or by the
    /// active one's.
    pub fn rebuilt_after(&self, after: u32, spec: Option<&Spec>) -> Option<u32> {
        let later = self.active.iter().chain(&self.building).filter(|version| version.number > after);
        let active = self.active.as_ref().map(|active| &active.spec);
        later.filter(|version| Some(&version.spec) == spec.or(active)).map(|version| version.number).last()
    }

    /// Begins to build another version, by another definition or by the same. It takes the active one's place by itself
    /// once it is built, unless it is held.
    ///
    /// # Errors
    ///
    /// `Invalid` where one is being built already, the index was dropped, or the definition is wrong or has another name.
    pub fn rebuild(&mut self, spec: Option<Spec>, hold: bool) -> Result<u32> {
        self.check_there()?;
        if let Some(building) = &self.building {
            return Err(Error::invalid(format!(
                "version {} of index {} is being built, or waits to take the active one's place: swap or cancel it first",
                building.number, building.spec.name
            )));
        }
        let Some(active) = &self.active else {
            return Err(Error::corrupt(format!("index {} has no version at all: drop it", self.id)));
        };
        let spec = spec.unwrap_or_else(|| active.spec.clone());
        if spec.name != active.spec.name {
            return Err(Error::invalid(format!(
                "index {} can't be built anew as {}: it keeps its name; create another index",
                active.spec.name, spec.name
            )));
        }
        self.build(spec, !hold)
    }

    fn build(&mut self, spec: Spec, swap_when_built: bool) -> Result<u32> {
        let number = self
            .last_version
            .checked_add(1)
            .ok_or_else(|| Error::invalid("the index was built 2^32 times: create another one"))?;
        let definition = Definition::new(self.id, number, spec)?;
        self.building = Some(Version { number, spec: definition.spec().clone() });
        self.swap_when_built = swap_when_built;
        self.is_built = false;
        self.last_version = number;
        Ok(number)
    }

    /// Builds another version in the place of one that can't go on, because the changelog was cut past it. Answers whether
    /// anything was done: not where another version is being built already.
    ///
    /// # Errors
    ///
    /// As for [`rebuild`](Self::rebuild).
    pub fn restart(&mut self, number: u32, reason: &str) -> Result<bool> {
        if self.dropped {
            return Ok(false);
        }
        if let Some(building) = self.building.take_if(|building| building.number == number) {
            self.doomed.push(number);
            self.build(building.spec, self.swap_when_built)?;
        } else if let Some(active) = self.active.as_ref().filter(|active| active.number == number)
            && self.building.is_none()
        {
            self.build(active.spec.clone(), true)?;
        } else {
            return Ok(false);
        }
        reason.clone_into(&mut self.restarted);
        Ok(true)
    }

    /// Notes that a version is built: the first one answers from now on, and a later one that is not held. Answers whether
    /// that changed anything.
    pub fn built(&mut self, number: u32) -> bool {
        if self.building.as_ref().is_none_or(|building| building.number != number) || self.is_built {
            return false;
        }
        self.is_built = true;
        if self.active.is_none() || self.swap_when_built {
            self.replace_active();
        }
        true
    }

    fn replace_active(&mut self) {
        if let Some(built) = self.building.take() {
            self.doomed.extend(self.active.replace(built).map(|old| old.number));
        }
    }

    /// Puts the version that was built in the active one's place, whose rows are doomed then. Zero is whichever that is.
    /// Done already is no error.
    ///
    /// # Errors
    ///
    /// `Invalid` where `number` is no version that is being built, or is not built yet.
    pub fn swap(&mut self, number: u32) -> Result<()> {
        self.check_there()?;
        if number != 0 && self.active.as_ref().is_some_and(|active| active.number == number) {
            return Ok(());
        }
        let number = self.check_building(number)?;
        if !self.is_built {
            return Err(Error::invalid(format!(
                "version {number} of the index is not built yet: wait until it is, or let it take the active one's place by \
                 itself"
            )));
        }
        self.replace_active();
        Ok(())
    }

    /// Gives up building: the rows made so far are doomed. Zero is whichever version is being built. Done already is no
    /// error.
    ///
    /// # Errors
    ///
    /// `Invalid` where `number` is not being built, or is the only version there is: drop the index.
    pub fn cancel(&mut self, number: u32) -> Result<()> {
        self.check_there()?;
        let is = |version: &Option<Version>| version.as_ref().is_some_and(|version| version.number == number);
        if (1..=self.last_version).contains(&number) && !is(&self.active) && !is(&self.building) {
            // Done already.
            return Ok(());
        }
        if self.active.is_none() {
            return Err(Error::invalid(
                "the index has no other version than the one that is being built: drop it",
            ));
        }
        self.check_building(number)?;
        self.doomed.extend(self.building.take().map(|cancelled| cancelled.number));
        Ok(())
    }

    /// Drops the index: all of its rows are doomed.
    pub fn drop_all(&mut self) {
        self.doomed.extend(self.active.take().map(|version| version.number));
        self.doomed.extend(self.building.take().map(|version| version.number));
        self.dropped = true;
    }

    /// Notes that a doomed version's rows are gone. Answers whether nothing is left of the index.
    pub fn cleared(&mut self, number: u32) -> bool {
        self.doomed.retain(|doomed| *doomed != number);
        self.dropped && self.doomed.is_empty()
    }

    /// The definitions that a projector has to keep up: of what answers, and of what is being built.
    ///
    /// # Errors
    ///
    /// `Invalid` where a definition is wrong: only another build of kvorum can have stored it.
    pub fn definitions(&self) -> Result<Vec<Definition>> {
        let versions = self.active.iter().chain(&self.building);
        versions.map(|version| Definition::new(self.id, version.number, version.spec.clone())).collect()
    }

    fn check_there(&self) -> Result<()> {
        match self.dropped {
            false => Ok(()),
            true => Err(Error::invalid(
                "the index was dropped, and its rows are being cleared away: create it anew",
            )),
        }
    }

    /// The version that is being built, where it is this one, or zero was given.
    fn check_building(&self, number: u32) -> Result<u32> {
        match &self.building {
            Some(building) if number == 0 || building.number == number => Ok(building.number),
            Some(building) => Err(Error::invalid(format!(
                "version {number} of the index is not being built: version {} is",
                building.number
            ))),
            None => Err(Error::invalid("no version of the index is being built: begin with a rebuild")),
        }
    }
}
