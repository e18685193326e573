//! A volume that forgets at a power cut what was not synced: files, directories and what of them is on the disk. Pure.
//!
//! It promises no more than POSIX does: `fsync` of a file keeps the file's bytes, and only `fsync` of a directory keeps
//! the names in it. What was not synced may all be lost, or some of it may have reached the disk, in any order and
//! with the last write torn: which of the two, and what, is drawn from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::ops::Range;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The number of a file or a directory.
pub type Ino = u64;
/// The volume's top directory.
pub const ROOT: Ino = 1;
/// A disk writes so many bytes at once; a write is torn between them only.
const SECTOR_BYTES: usize = 512;

/// Why a volume refuses something.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// There is no such name, or no such number.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name is taken")]
    Exists,
    /// A directory that holds something can't go.
    #[error("the directory is not empty")]
    NotEmpty,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A file was needed.
    #[error("a directory")]
    IsADirectory,
    /// It would hold more than it may.
    #[error("the volume is full")]
    Full,
    /// The power is off.
    #[error("the power is off")]
    Off,
}

type Result<T> = std::result::Result<T, Refused>;
type Names = BTreeMap<OsString, Ino>;

/// What stands behind a number.
#[derive(Clone, Debug)]
enum Inode {
    File(File),
    Directory { live: Names, durable: Names },
}

#[derive(Clone, Debug)]
struct File {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// What was written since the last sync, in that order.
    unsynced: Vec<Range<usize>>,
    /// How short it has been since the last sync: what lay behind that is gone, also where it has grown again.
    shortest: usize,
    /// How often it is open: a file without a name lives on while it is.
    opens: u32,
}

/// What a file or a directory looks like from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    /// Its number.
    pub ino: Ino,
    /// Bytes of a file; 0 of a directory.
    pub size_bytes: u64,
    /// Whether it is a directory.
    pub is_directory: bool,
    /// How many names it has.
    pub links: u32,
}

/// How much of a volume there is, and is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usage {
    /// What it may hold.
    pub capacity_bytes: u64,
    /// What it holds.
    pub used_bytes: u64,
}

/// A volume. Not shared: whoever mounts it guards it.
#[derive(Debug)]
pub struct Volume {
    inodes: BTreeMap<Ino, Inode>,
    next: Ino,
    on: bool,
    capacity_bytes: u64,
    used_bytes: u64,
    /// Syncs of files and directories since the beginning.
    syncs: u64,
}

impl Volume {
    /// An empty volume, with its power on.
    pub fn new(capacity_bytes: u64) -> Self {
        let root = Inode::Directory { live: Names::new(), durable: Names::new() };
        Self {
            inodes: BTreeMap::from([(ROOT, root)]),
            next: ROOT + 1,
            on: true,
            capacity_bytes,
            used_bytes: 0,
            syncs: 0,
        }
    }

    /// Cuts the power: from this moment on nothing is answered, and so nothing more is acknowledged.
    pub fn power_off(&mut self) {
        self.on = false;
    }

    /// Brings the power back. What was not synced before it went is gone, or by the seed's choice partly there.
    pub fn power_on(&mut self, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let keeps_some = rng.random_bool(0.5);
        for inode in self.inodes.values_mut() {
            match inode {
                Inode::File(file) => {
                    if keeps_some {
                        file.keep_some(&mut rng);
                    }
                    file.live.clone_from(&file.durable);
                    file.unsynced.clear();
                    file.shortest = usize::MAX;
                    file.opens = 0;
                }
                Inode::Directory { live, durable } => live.clone_from(durable),
            }
        }
        self.drop_unnamed();
        self.on = true;
    }

    /// Syncs of files and directories since the beginning.
    pub fn syncs(&self) -> u64 {
        self.syncs
    }

    /// Changes what it may hold. What it holds already stays, also where that is more.
    pub fn set_capacity(&mut self, capacity_bytes: u64) {
        self.capacity_bytes = capacity_bytes;
    }

    /// How much of it is used.
    pub fn usage(&self) -> Usage {
        Usage { capacity_bytes: self.capacity_bytes, used_bytes: self.used_bytes }
    }

    /// The number behind a name.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Attributes> {
        let ino = *self.names(parent)?.get(name).ok_or(Refused::NotFound)?;
        self.attributes(ino)
    }

    /// What a file or directory looks like.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        self.check_on()?;
        let (size_bytes, is_directory) = match self.inode(ino)? {
            Inode::File(file) => (file.live.len() as u64, false),
            Inode::Directory { .. } => (0, true),
        };
        let links = if is_directory { 2 } else { self.count_names(ino) };
        Ok(Attributes { ino, size_bytes, is_directory, links })
    }

    /// The names in a directory, in order.
    pub fn list(&self, ino: Ino) -> Result<Vec<(OsString, Attributes)>> {
        let names = self.names(ino)?;
        names.iter().map(|(name, ino)| Ok((name.clone(), self.attributes(*ino)?))).collect()
    }

    /// Makes a file and opens it.
    pub fn create(&mut self, parent: Ino, name: &OsStr) -> Result<Attributes> {
        let ino = self.add(parent, name, Inode::File(File::opened()))?;
        self.attributes(ino)
    }

    /// Makes a directory.
    pub fn make_directory(&mut self, parent: Ino, name: &OsStr) -> Result<Attributes> {
        let ino = self.add(parent, name, Inode::Directory { live: Names::new(), durable: Names::new() })?;
        self.attributes(ino)
    }

    /// Gives a file one more name.
    pub fn link(&mut self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Attributes> {
        self.file(ino)?;
        let names = self.names_mut(parent)?;
        if names.contains_key(name) {
            return Err(Refused::Exists);
        }
        names.insert(name.to_owned(), ino);
        self.attributes(ino)
    }

    /// Takes a file's name away.
    pub fn unlink(&mut self, parent: Ino, name: &OsStr) -> Result<()> {
        if self.lookup(parent, name)?.is_directory {
            return Err(Refused::IsADirectory);
        }
        self.names_mut(parent)?.remove(name);
        self.drop_unnamed();
        Ok(())
    }

    /// Removes an empty directory.
    pub fn remove_directory(&mut self, parent: Ino, name: &OsStr) -> Result<()> {
        let found = self.lookup(parent, name)?;
        if !self.names(found.ino)?.is_empty() {
            return Err(Refused::NotEmpty);
        }
        self.names_mut(parent)?.remove(name);
        self.drop_unnamed();
        Ok(())
    }

    /// Gives something another name, in place of what bore it.
    pub fn rename(&mut self, from: (Ino, &OsStr), to: (Ino, &OsStr)) -> Result<()> {
        let moved = self.lookup(from.0, from.1)?;
        if let Ok(replaced) = self.lookup(to.0, to.1) {
            match (moved.is_directory, replaced.is_directory) {
                (false, true) => return Err(Refused::IsADirectory),
                (true, false) => return Err(Refused::NotADirectory),
                (true, true) if !self.names(replaced.ino)?.is_empty() => return Err(Refused::NotEmpty),
                _ => {}
            }
        }
        // Both are looked at before either is changed.
        self.names(to.0)?;
        self.names_mut(from.0)?.remove(from.1);
        self.names_mut(to.0)?.insert(to.1.to_owned(), moved.ino);
        self.drop_unnamed();
        Ok(())
    }

    /// Opens a file.
    pub fn open(&mut self, ino: Ino) -> Result<()> {
        self.file_mut(ino)?.opens += 1;
        Ok(())
    }

    /// Closes a file that was opened. Also with the power off: it is the kernel that does it.
    pub fn close(&mut self, ino: Ino) {
        if let Some(Inode::File(file)) = self.inodes.get_mut(&ino) {
            file.opens = file.opens.saturating_sub(1);
        }
        self.drop_unnamed();
    }

    /// Up to `size` bytes from `offset` on.
    pub fn read(&self, ino: Ino, offset: u64, size: usize) -> Result<&[u8]> {
        let live = &self.file(ino)?.live;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(live.len());
        Ok(&live[from..from.saturating_add(size).min(live.len())])
    }

    /// Writes bytes at `offset`; what lies between the end and there is zeros.
    pub fn write(&mut self, ino: Ino, offset: u64, bytes: &[u8]) -> Result<()> {
        let from = usize::try_from(offset).map_err(|_| Refused::Full)?;
        let until = from.checked_add(bytes.len()).ok_or(Refused::Full)?;
        self.reserve(ino, until)?;
        let file = self.file_mut(ino)?;
        file.live[from..until].copy_from_slice(bytes);
        match file.unsynced.last_mut().filter(|last| last.end == from) {
            Some(last) => last.end = until,
            None => file.unsynced.push(from..until),
        }
        Ok(())
    }

    /// Makes a file exactly so long.
    pub fn truncate(&mut self, ino: Ino, size_bytes: u64) -> Result<()> {
        let size = usize::try_from(size_bytes).map_err(|_| Refused::Full)?;
        self.reserve(ino, size)?;
        let file = self.file_mut(ino)?;
        let before = file.live.len();
        file.live.truncate(size);
        file.shortest = file.shortest.min(size);
        self.used_bytes -= before.saturating_sub(size) as u64;
        Ok(())
    }

    /// Keeps a file's bytes.
    pub fn sync_file(&mut self, ino: Ino) -> Result<()> {
        self.file_mut(ino)?.sync();
        self.syncs += 1;
        Ok(())
    }

    /// Keeps the names in a directory.
    pub fn sync_directory(&mut self, ino: Ino) -> Result<()> {
        self.check_on()?;
        match self.inode_mut(ino)? {
            Inode::Directory { live, durable } => durable.clone_from(live),
            Inode::File(_) => return Err(Refused::NotADirectory),
        }
        self.syncs += 1;
        self.drop_unnamed();
        Ok(())
    }

    fn check_on(&self) -> Result<()> {
        if self.on { Ok(()) } else { Err(Refused::Off) }
    }

    fn inode(&self, ino: Ino) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or(Refused::NotFound)
    }

    fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or(Refused::NotFound)
    }

    fn names(&self, ino: Ino) -> Result<&Names> {
        self.check_on()?;
        match self.inode(ino)? {
            Inode::Directory { live, .. } => Ok(live),
            Inode::File(_) => Err(Refused::NotADirectory),
        }
    }

    fn names_mut(&mut self, ino: Ino) -> Result<&mut Names> {
        self.check_on()?;
        match self.inode_mut(ino)? {
            Inode::Directory { live, .. } => Ok(live),
            Inode::File(_) => Err(Refused::NotADirectory),
        }
    }

    fn file(&self, ino: Ino) -> Result<&File> {
        self.check_on()?;
        match self.inode(ino)? {
            Inode::File(file) => Ok(file),
            Inode::Directory { .. } => Err(Refused::IsADirectory),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut File> {
        self.check_on()?;
        match self.inode_mut(ino)? {
            Inode::File(file) => Ok(file),
            Inode::Directory { .. } => Err(Refused::IsADirectory),
        }
    }

    fn add(&mut self, parent: Ino, name: &OsStr, inode: Inode) -> Result<Ino> {
        let ino = self.next;
        let names = self.names_mut(parent)?;
        if names.contains_key(name) {
            return Err(Refused::Exists);
        }
        names.insert(name.to_owned(), ino);
        self.inodes.insert(ino, inode);
        self.next += 1;
        Ok(ino)
    }

    /// Makes a file at least so long.
    fn reserve(&mut self, ino: Ino, size: usize) -> Result<()> {
        let free = self.capacity_bytes.saturating_sub(self.used_bytes);
        let file = self.file_mut(ino)?;
        let more = size.saturating_sub(file.live.len());
        if more as u64 > free {
            return Err(Refused::Full);
        }
        if more > 0 {
            file.live.resize(size, 0);
        }
        self.used_bytes += more as u64;
        Ok(())
    }

    fn count_names(&self, ino: Ino) -> u32 {
        let in_directory = |inode: &Inode| match inode {
            Inode::Directory { live, .. } => live.values().filter(|named| **named == ino).count(),
            Inode::File(_) => 0,
        };
        self.inodes.values().map(in_directory).sum::<usize>() as u32
    }

    /// Lets go of what has no name any more, neither now nor after a power cut, and is not open.
    fn drop_unnamed(&mut self) {
        let mut kept = BTreeSet::from([ROOT]);
        for inode in self.inodes.values() {
            if let Inode::Directory { live, durable } = inode {
                kept.extend(live.values().chain(durable.values()));
            }
        }
        self.inodes
            .retain(|ino, inode| kept.contains(ino) || matches!(inode, Inode::File(file) if file.opens > 0));
        let size = |inode: &Inode| match inode {
            Inode::File(file) => file.live.len() as u64,
            Inode::Directory { .. } => 0,
        };
        self.used_bytes = self.inodes.values().map(size).sum();
    }
}

impl File {
    fn opened() -> Self {
        let (live, durable, unsynced) = (Vec::new(), Vec::new(), Vec::new());
        Self { live, durable, unsynced, shortest: usize::MAX, opens: 1 }
    }

    fn sync(&mut self) {
        let written = std::mem::take(&mut self.unsynced);
        self.durable.truncate(std::mem::replace(&mut self.shortest, usize::MAX));
        self.durable.resize(self.live.len(), 0);
        for range in written {
            let until = range.end.min(self.live.len());
            if range.start < until {
                self.durable[range.start..until].copy_from_slice(&self.live[range.start..until]);
            }
        }
    }

    /// Some of what was written has reached the disk by itself.
    fn keep_some(&mut self, rng: &mut SmallRng) {
        for range in std::mem::take(&mut self.unsynced) {
            if rng.random_bool(0.5) {
                continue;
            }
            let sectors = range.len() / SECTOR_BYTES;
            let torn = range.start + rng.random_range(0..=sectors) * SECTOR_BYTES;
            let until = if rng.random_bool(0.5) { range.end } else { torn }.min(self.live.len());
            if range.start >= until {
                continue;
            }
            if self.durable.len() < until {
                self.durable.resize(until, 0);
            }
            self.durable[range.start..until].copy_from_slice(&self.live[range.start..until]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    fn made(volume: &mut Volume, file: &str) -> Ino {
        volume.create(ROOT, name(file)).expect("makes a file").ino
    }

    /// Cuts the power in such a way that nothing unsynced reaches the disk.
    fn cut_hard(volume: &mut Volume) {
        let seed = (0..).find(|seed| !SmallRng::seed_from_u64(*seed).random_bool(0.5)).expect("half of them");
        volume.power_off();
        volume.power_on(seed);
    }

    fn content(volume: &Volume, file: &str) -> Option<Vec<u8>> {
        let found = volume.lookup(ROOT, name(file)).ok()?;
        Some(volume.read(found.ino, 0, usize::MAX).expect("is a file").to_vec())
    }

    #[test]
    fn only_what_was_synced_is_there_after_a_cut() {
        let mut volume = Volume::new(1 << 20);
        let ino = made(&mut volume, "a");
        volume.write(ino, 0, b"kept").expect("writes");
        volume.sync_file(ino).expect("syncs");
        volume.sync_directory(ROOT).expect("syncs");
        volume.write(ino, 2, b"lost").expect("writes");
        assert_eq!(content(&volume, "a").as_deref(), Some(&b"kelost"[..]));
        cut_hard(&mut volume);
        assert_eq!(content(&volume, "a").as_deref(), Some(&b"kept"[..]));
    }

    #[test]
    fn a_name_is_there_once_its_directory_was_synced_and_not_before() {
        let mut volume = Volume::new(1 << 20);
        let ino = made(&mut volume, "a");
        volume.write(ino, 0, b"bytes").expect("writes");
        volume.sync_file(ino).expect("syncs");
        cut_hard(&mut volume);
        assert_eq!(content(&volume, "a"), None);
        let ino = made(&mut volume, "b");
        volume.sync_directory(ROOT).expect("syncs");
        volume.write(ino, 0, b"bytes").expect("writes");
        cut_hard(&mut volume);
        assert_eq!(content(&volume, "b").as_deref(), Some(&b""[..]));
        // A rename that was not synced did not happen, nor did a removal.
        volume.rename((ROOT, name("b")), (ROOT, name("c"))).expect("renames");
        assert_eq!(content(&volume, "b"), None);
        cut_hard(&mut volume);
        assert_eq!((content(&volume, "b"), content(&volume, "c")), (Some(Vec::new()), None));
        volume.unlink(ROOT, name("b")).expect("unlinks");
        cut_hard(&mut volume);
        assert!(content(&volume, "b").is_some());
    }

    #[test]
    fn what_is_cut_off_and_grown_again_is_zeros() {
        let mut volume = Volume::new(1 << 20);
        let ino = made(&mut volume, "a");
        volume.write(ino, 0, b"abcdef").expect("writes");
        volume.sync_file(ino).expect("syncs");
        volume.truncate(ino, 2).expect("truncates");
        volume.truncate(ino, 4).expect("grows");
        volume.write(ino, 5, b"x").expect("writes");
        volume.sync_file(ino).expect("syncs");
        volume.sync_directory(ROOT).expect("syncs");
        cut_hard(&mut volume);
        assert_eq!(content(&volume, "a").as_deref(), Some(&b"ab\0\0\0x"[..]));
    }

    #[test]
    fn some_cuts_leave_a_part_of_what_was_not_synced() {
        let whole = vec![7_u8; 64 * SECTOR_BYTES];
        let mut lengths = BTreeSet::new();
        for seed in 0..64 {
            let mut volume = Volume::new(1 << 20);
            let ino = made(&mut volume, "a");
            volume.sync_directory(ROOT).expect("syncs");
            volume.write(ino, 0, &whole).expect("writes");
            volume.power_off();
            volume.power_on(seed);
            let left = content(&volume, "a").expect("has its name");
            assert!(whole.starts_with(&left));
            lengths.insert(left.len());
        }
        assert!(lengths.contains(&0) && lengths.contains(&whole.len()) && lengths.len() > 4, "{lengths:?}");
    }

    #[test]
    fn nothing_is_answered_while_the_power_is_off() {
        let mut volume = Volume::new(1 << 20);
        let ino = made(&mut volume, "a");
        volume.power_off();
        assert_eq!(volume.write(ino, 0, b"x"), Err(Refused::Off));
        assert_eq!(volume.sync_file(ino), Err(Refused::Off));
        assert_eq!(volume.sync_directory(ROOT), Err(Refused::Off));
        assert_eq!(volume.lookup(ROOT, name("a")), Err(Refused::Off));
    }

    #[test]
    fn a_full_volume_says_so_and_room_comes_back() {
        let mut volume = Volume::new(10);
        let ino = made(&mut volume, "a");
        volume.write(ino, 0, b"0123456789").expect("fits");
        assert_eq!(volume.write(ino, 10, b"x"), Err(Refused::Full));
        volume.write(ino, 0, b"9").expect("needs no more room");
        volume.unlink(ROOT, name("a")).expect("unlinks");
        assert_eq!(volume.usage().used_bytes, 10, "it is still open");
        volume.close(ino);
        assert_eq!(volume.usage().used_bytes, 0);
    }

    #[test]
    fn names_obey_the_rules_of_directories() {
        let mut volume = Volume::new(1 << 20);
        let directory = volume.make_directory(ROOT, name("d")).expect("makes one").ino;
        let file = volume.create(directory, name("f")).expect("makes one").ino;
        assert_eq!(volume.remove_directory(ROOT, name("d")), Err(Refused::NotEmpty));
        assert_eq!(volume.unlink(ROOT, name("d")), Err(Refused::IsADirectory));
        assert_eq!(volume.create(directory, name("f")), Err(Refused::Exists));
        assert_eq!(volume.rename((directory, name("f")), (ROOT, name("d"))), Err(Refused::IsADirectory));
        assert_eq!(volume.list(file), Err(Refused::NotADirectory));
        volume.link(file, ROOT, name("g")).expect("links");
        assert_eq!(volume.attributes(file).expect("is there").links, 2);
        volume.unlink(directory, name("f")).expect("unlinks");
        volume.remove_directory(ROOT, name("d")).expect("is empty");
        assert_eq!(volume.lookup(ROOT, name("g")).expect("is there").ino, file);
    }
}
