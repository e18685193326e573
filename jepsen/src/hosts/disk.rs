//! Where a node keeps its data, and what can be done to that place.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use super::leftovers::{MOUNTS, remove_mounts};
use super::power::PowerDisk;
use super::record::Record;
use super::tools::{Context, Error, Result, run};

/// What kind of place nodes keep their data in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskKind {
    /// A plain directory.
    Directory,
    /// A file system of its own, in a file that is mounted over a loop device: it can be filled up and frozen.
    Small {
        /// How large it is.
        mebibytes: u32,
    },
    /// A disk that forgets at a power cut what was not synced; it can be filled up and frozen too.
    Power {
        /// How large it is.
        mebibytes: u32,
    },
}

/// One node's place. Dropped, it is thawed and unmounted; a plain directory stays.
pub struct Disk {
    data: PathBuf,
    mount: Option<PathBuf>,
    image: Option<PathBuf>,
    power: Option<PowerDisk>,
}

/// The files that take all room on a full disk, at most so many.
const FILLER: &str = "filler";
const FILLERS: usize = 8;
/// A file system gives room in blocks of this size.
const BLOCK_BYTES: u64 = 4096;

impl Disk {
    /// Makes the place of the node with this number in `directory`, which exists. What would stay of it is taken down in
    /// the record.
    ///
    /// # Errors
    /// Where a file system can't be made or mounted.
    pub fn make(kind: DiskKind, directory: &Path, number: usize, record: &Record) -> Result<Self> {
        let data = directory.join(number.to_string());
        match kind {
            DiskKind::Directory => Ok(Self { data, mount: None, image: None, power: None }),
            DiskKind::Small { mebibytes } => Self::mounted(mebibytes, directory, number, record),
            DiskKind::Power { mebibytes } => Self::powered(mebibytes, number),
        }
    }

    fn powered(mebibytes: u32, number: usize) -> Result<Self> {
        let mount = mount_point(number)?;
        let power = PowerDisk::mount(&mount, u64::from(mebibytes) << 20);
        let power = power.context(|| format!("mount a disk at {}", mount.display()))?;
        Ok(Self { data: mount.join("data"), mount: Some(mount), image: None, power: Some(power) })
    }

    fn mounted(mebibytes: u32, directory: &Path, number: usize, record: &Record) -> Result<Self> {
        let image = directory.join(format!("{number}.img"));
        record.file(&image);
        let mount = mount_point(number)?;
        let file = fs::File::create(&image).context(|| format!("make {}", image.display()))?;
        file.set_len(u64::from(mebibytes) << 20).context(|| format!("size {}", image.display()))?;
        // No blocks are kept for root: the node may run as root, and the disk shall be full for it too.
        run("mkfs.ext4", &["-q", "-F", "-m", "0", &image.to_string_lossy()])?;
        run("mount", &["-o", "loop", &image.to_string_lossy(), &mount.to_string_lossy()])?;
        Ok(Self { data: mount.join("data"), mount: Some(mount), image: Some(image), power: None })
    }

    /// The node's data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Takes all room that is left, also what files have reserved beyond their end: with that, a store would go on
    /// writing for long. Nothing may be writing meanwhile.
    ///
    /// # Errors
    /// For a plain directory, and where there is room left, or no telling how much.
    pub fn fill(&self) -> Result<()> {
        if let Some(power) = &self.power {
            power.fill();
            return Ok(());
        }
        let mount = self.small("filled up")?;
        release_reserved(&self.data).context(|| format!("take back room in {}", self.data.display()))?;
        // Something may be freed while it is filled.
        for file in fillers(mount) {
            let bytes = room_left(mount)?;
            if bytes == 0 {
                break;
            }
            // An error means that there is less room than it said: the next round tries again.
            let _ = run("fallocate", &["-l", &bytes.to_string(), &file.to_string_lossy()]);
        }
        match room_left(mount)? {
            0 => Ok(()),
            bytes => Err(Error::Other(format!("{} is not full: {bytes} bytes are left", mount.display()))),
        }
    }

    /// Gives the room back.
    ///
    /// # Errors
    /// For a plain directory, and where the file can't be removed.
    pub fn free(&self) -> Result<()> {
        if let Some(power) = &self.power {
            power.free();
            return Ok(());
        }
        let mount = self.small("freed")?;
        for file in fillers(mount) {
            if file.exists() {
                fs::remove_file(&file).context(|| format!("remove {}", file.display()))?;
            }
        }
        Ok(())
    }

    /// Makes every write and sync wait until [`thaw`](Self::thaw).
    ///
    /// # Errors
    /// For a plain directory.
    pub fn freeze(&self) -> Result<()> {
        if let Some(power) = &self.power {
            power.freeze();
            return Ok(());
        }
        run("fsfreeze", &["-f", &self.small("frozen")?.to_string_lossy()]).map(drop)
    }

    /// Lets writes go on. Nothing where they do.
    pub fn thaw(&self) {
        if let Some(power) = &self.power {
            power.thaw();
        } else if let Some(mount) = &self.mount {
            // It fails where the file system is not frozen.
            let _ = run("fsfreeze", &["-u", &mount.to_string_lossy()]);
        }
    }

    /// Cuts the disk's power: every call on it fails until [`restore_power`](Self::restore_power).
    ///
    /// # Errors
    /// Where it is no disk of that kind.
    pub fn cut_power(&self) -> Result<()> {
        self.powered_disk().map(PowerDisk::cut)
    }

    /// Brings the power back. What was not synced is gone, or by the seed's choice partly there.
    ///
    /// # Errors
    /// Where it is no disk of that kind, or can't be mounted again.
    pub fn restore_power(&self, seed: u64) -> Result<()> {
        let disk = self.powered_disk()?;
        disk.restore(seed).context(|| format!("mount {} again", disk.path().display()))
    }

    fn powered_disk(&self) -> Result<&PowerDisk> {
        let none = || Error::Other(format!("the power of {} can't be cut", self.data.display()));
        self.power.as_ref().ok_or_else(none)
    }

    fn small(&self, done: &str) -> Result<&Path> {
        self.mount.as_deref().ok_or_else(|| {
            Error::Other(format!(
                "{} is no file system of its own, so it can't be {done}",
                self.data.display()
            ))
        })
    }

    /// Copies the data out to `target`, so that it can be looked at when the disk is gone. Nothing for a plain
    /// directory, which stays.
    ///
    /// # Errors
    /// Where it can't be copied.
    pub fn keep(&self, target: &Path) -> Result<()> {
        if self.mount.is_some() && self.data.exists() {
            run("cp", &["-a", &self.data.to_string_lossy(), &target.to_string_lossy()])?;
        }
        Ok(())
    }
}

fn fillers(mount: &Path) -> impl Iterator<Item = PathBuf> {
    (0..FILLERS).map(|round| mount.join(format!("{FILLER}{round}")))
}

/// The bytes that can still be written to the file system at a place.
fn room_left(mount: &Path) -> Result<u64> {
    let room = statvfs(mount).map_err(std::io::Error::from).context(|| format!("{}", mount.display()))?;
    Ok(room.f_bavail * room.f_frsize)
}

/// Frees the blocks that files in the directory have beyond their end. Their content stays.
fn release_reserved(directory: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let found = entry.metadata()?;
        if found.is_dir() {
            release_reserved(&entry.path())?;
        } else if found.blocks() * 512 > found.len().next_multiple_of(BLOCK_BYTES) {
            fs::OpenOptions::new().write(true).open(entry.path())?.set_len(found.len())?;
        }
    }
    Ok(())
}

/// A directory to mount a node's disk on.
fn mount_point(number: usize) -> Result<PathBuf> {
    let mount = PathBuf::from(format!("{MOUNTS}/{}/{number}", std::process::id()));
    fs::create_dir_all(&mount).context(|| format!("make {}", mount.display()))?;
    Ok(mount)
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            self.thaw();
            drop(self.power.take());
            remove_mounts(&mount);
            if let Some(parent) = mount.parent() {
                // Other nodes' mounts may still be in it.
                let _ = fs::remove_dir(parent);
            }
        }
        if let Some(image) = &self.image {
            let _ = fs::remove_file(image);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_a_file_has_reserved_is_taken_back_and_its_content_stays() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log");
        fs::write(&path, b"what was written").unwrap();
        let reserve = ["-n", "-l", "1048576", &path.to_string_lossy()];
        if let Err(reason) = run("fallocate", &reserve) {
            return crate::hosts::not_run(&reason.to_string());
        }
        assert!(fs::metadata(&path).unwrap().blocks() * 512 >= 1 << 20);
        release_reserved(home.path()).unwrap();
        assert!(fs::metadata(&path).unwrap().blocks() * 512 <= BLOCK_BYTES);
        assert_eq!(fs::read(&path).unwrap(), b"what was written");
    }

    #[test]
    fn a_small_disk_is_full_to_the_last_byte_and_has_its_room_again() {
        let means = crate::hosts::Means::of_this_machine();
        if let Err(reason) = means.disks {
            return crate::hosts::not_run(&reason);
        }
        let home = tempfile::tempdir().unwrap();
        let disk = match Disk::make(DiskKind::Small { mebibytes: 16 }, home.path(), 90, &Record::none()) {
            Ok(disk) => disk,
            Err(error) => return crate::hosts::not_run(&error.to_string()),
        };
        fs::create_dir(disk.data()).unwrap();
        let file = disk.data().join("log");
        disk.fill().unwrap();
        assert!(fs::write(&file, [1; 8192]).is_err());
        disk.free().unwrap();
        fs::write(&file, [1; 8192]).unwrap();
    }

    #[test]
    fn a_plain_directory_can_be_neither_filled_nor_frozen() {
        let home = tempfile::tempdir().unwrap();
        let disk = Disk::make(DiskKind::Directory, home.path(), 1, &Record::none()).unwrap();
        assert_eq!(disk.data(), home.path().join("1"));
        assert!(disk.fill().is_err() && disk.freeze().is_err() && disk.free().is_err());
    }
}
