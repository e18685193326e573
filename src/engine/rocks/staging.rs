//! Rows received for a range, in sorted files beside the database until they are installed.
//!
//! Each staging is a directory; it counts as finished once it bears its final name, which is given
//! after its files were synced.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rocksdb::{Options, SstFileWriter};

use super::{engine_error, io_error};
use crate::engine::{Family, StagedName, Staging, out_of_order};
use crate::types::{Error, Result};

/// A file is ended after so many bytes of keys and values and another one begun.
const FILE_BYTES: usize = 64 * 1024 * 1024;
/// Ends the names of directories that are not finished.
const UNFINISHED: &str = ".unfinished";

/// The directory of stagings of the database in `path`: beside it, since RocksDB owns its own.
pub(super) fn directory(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".staging");
    path.with_file_name(name)
}

/// All stagings, finished or not.
pub(super) fn names(dir: &Path) -> Result<Vec<StagedName>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| io_error("list", dir, &error))? {
        let entry = entry.map_err(|error| io_error("list", dir, &error))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// The highest number in use, or 0.
pub(super) fn last_number(dir: &Path) -> Result<u64> {
    let numbers = names(dir)?.into_iter().filter_map(|name| name.trim_end_matches(UNFINISHED).parse().ok());
    Ok(numbers.max().unwrap_or(0))
}

/// Removes a staging, if it is there.
pub(super) fn remove(dir: &Path, name: &str) -> Result<()> {
    let path = dir.join(name);
    match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", &path, &error)),
        _ => Ok(()),
    }
}

/// The files of a finished staging, in order.
pub(super) fn files(dir: &Path, name: &str) -> Result<BTreeMap<Family, Vec<PathBuf>>> {
    let path = dir.join(name);
    if name.ends_with(UNFINISHED) || !path.is_dir() {
        return Err(Error::corrupt(format!(
            "there are no staged rows named {name:?} in {}: they were discarded or never finished",
            dir.display()
        )));
    }
    let mut found: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(|error| io_error("list", &path, &error))? {
        found.push(entry.map_err(|error| io_error("list", &path, &error))?.path());
    }
    found.sort();
    let mut files: BTreeMap<Family, Vec<PathBuf>> = BTreeMap::new();
    for file in found {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let family = stem.split('-').next().unwrap_or_default();
        let Some(family) = Family::ALL.into_iter().find(|known| known.name() == family) else {
            return Err(Error::corrupt(format!("{} is not a file of staged rows", file.display())));
        };
        files.entry(family).or_default().push(file);
    }
    Ok(files)
}

/// Alive as long as the process, since every writer of files borrows it.
fn file_options() -> &'static Options {
    static OPTIONS: OnceLock<Options> = OnceLock::new();
    OPTIONS.get_or_init(super::options::staged_files)
}

/// The file of a family that is being written.
struct OpenFile {
    writer: SstFileWriter<'static>,
    path: PathBuf,
    bytes: usize,
}

/// What has been staged of one family.
#[derive(Default)]
struct FamilyFiles {
    open: Option<OpenFile>,
    count: usize,
    last_key: Option<Vec<u8>>,
}

/// A staging being filled.
pub(super) struct RocksStaging {
    parent: PathBuf,
    name: StagedName,
    path: PathBuf,
    families: BTreeMap<Family, FamilyFiles>,
    finished: bool,
}

impl RocksStaging {
    /// Begins staging number `number` in `parent`.
    pub(super) fn begin(parent: &Path, number: u64) -> Result<Self> {
        let name = format!("{number:020}");
        let path = parent.join(format!("{name}{UNFINISHED}"));
        std::fs::create_dir_all(&path).map_err(|error| io_error("create", &path, &error))?;
        Ok(Self { parent: parent.to_path_buf(), name, path, families: BTreeMap::new(), finished: false })
    }
}

impl FamilyFiles {
    fn put(&mut self, dir: &Path, family: Family, key: &[u8], value: &[u8]) -> Result<()> {
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return Err(out_of_order(family, key));
        }
        if self.open.as_ref().is_some_and(|open| open.bytes >= FILE_BYTES) {
            self.close()?;
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let path = dir.join(format!("{}-{:08}.sst", family.name(), self.count));
                self.count += 1;
                let writer = SstFileWriter::create(file_options());
                self.open.insert(OpenFile { writer, path, bytes: 0 })
            }
        };
        if open.bytes == 0 {
            open.writer.open(&open.path).map_err(|error| engine_error("stage rows for", &error))?;
        }
        open.writer.put(key, value).map_err(|error| engine_error("stage rows for", &error))?;
        // At least one, so that a file of empty rows does not look unopened.
        open.bytes += (key.len() + value.len()).max(1);
        self.last_key = Some(key.to_vec());
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(mut open) = self.open.take() {
            open.writer.finish().map_err(|error| engine_error("stage rows for", &error))?;
            sync(&open.path)?;
        }
        Ok(())
    }
}

impl Staging for RocksStaging {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<()> {
        self.families.entry(family).or_default().put(&self.path, family, key, value)
    }

    fn finish(mut self: Box<Self>) -> Result<StagedName> {
        for files in self.families.values_mut() {
            files.close()?;
        }
        sync(&self.path)?;
        let path = self.parent.join(&self.name);
        std::fs::rename(&self.path, &path).map_err(|error| io_error("rename", &self.path, &error))?;
        self.finished = true;
        sync(&self.parent)?;
        Ok(self.name.clone())
    }
}

impl Drop for RocksStaging {
    fn drop(&mut self) {
        if !self.finished {
            self.families.clear();
            // What can't be removed now is removed at the next start.
            if let Err(error) = std::fs::remove_dir_all(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "can't remove unfinished staged rows");
            }
        }
    }
}

/// Syncs a file or a directory.
fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_error("sync", path, &error))
}
