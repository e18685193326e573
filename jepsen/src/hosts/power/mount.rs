//! A [`Volume`] as a file system, by FUSE: what programs do to files there is done to the volume.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::volume::{Attributes, Refused, Volume};

/// How long the kernel may remember names and attributes: all changes go through it.
const REMEMBER: Duration = Duration::from_secs(1);
/// How long an unmount may find files open there, and how often it looks.
const BUSY_FOR: Duration = Duration::from_secs(10);
const BUSY_PAUSE: Duration = Duration::from_millis(5);
const BLOCK_BYTES: u32 = 4096;
const MAX_NAME_BYTES: u32 = 255;

/// Whether file systems can be mounted here: why not, otherwise.
pub fn available() -> Result<(), String> {
    if !Path::new("/dev/fuse").exists() {
        return Err(
            "/dev/fuse is missing: this kernel has no FUSE, or it is not let into this container".into()
        );
    }
    if !rustix::process::geteuid().is_root() {
        return Err("file systems are mounted by root only".into());
    }
    Ok(())
}

/// A volume and where it is mounted. Dropped, it is unmounted, and what it held is gone.
pub struct PowerDisk {
    shared: Arc<Shared>,
    path: PathBuf,
    capacity_bytes: u64,
    session: Mutex<Option<BackgroundSession>>,
}

/// What the disk and its mount share.
struct Shared {
    volume: Mutex<Volume>,
    /// Whether writes and syncs wait.
    is_frozen: Mutex<bool>,
    thawed: Condvar,
}

impl Shared {
    /// Returns when the disk is not frozen.
    fn wait_thawed(&self) {
        let mut is_frozen = self.is_frozen.lock();
        while *is_frozen {
            self.thawed.wait(&mut is_frozen);
        }
    }
}

impl PowerDisk {
    /// Mounts an empty volume at a directory that exists.
    ///
    /// # Errors
    ///
    /// Those of mounting.
    pub fn mount(path: &Path, capacity_bytes: u64) -> io::Result<Self> {
        let volume = Mutex::new(Volume::new(capacity_bytes));
        let shared = Arc::new(Shared { volume, is_frozen: Mutex::new(false), thawed: Condvar::new() });
        let disk = Self { shared, path: path.to_owned(), capacity_bytes, session: Mutex::new(None) };
        disk.attach()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs that programs asked for so far.
    pub fn syncs(&self) -> u64 {
        self.shared.volume.lock().syncs()
    }

    /// Cuts the power: from now on every call on a file there fails. Whoever had files open is to be killed next.
    pub fn cut(&self) {
        self.shared.volume.lock().power_off();
    }

    /// Brings the power back, after those who had files open are dead. What was not synced before the cut is gone,
    /// or by the seed's choice partly there.
    ///
    /// # Errors
    ///
    /// Those of unmounting and mounting.
    pub fn restore(&self, seed: u64) -> io::Result<()> {
        // What the kernel remembers of it is of before the cut.
        self.detach()?;
        self.shared.volume.lock().power_on(seed);
        self.attach()
    }

    /// Takes all room that is left.
    pub fn fill(&self) {
        let mut volume = self.shared.volume.lock();
        let used_bytes = volume.usage().used_bytes;
        volume.set_capacity(used_bytes);
    }

    /// Gives the room back.
    pub fn free(&self) {
        self.shared.volume.lock().set_capacity(self.capacity_bytes);
    }

    /// Makes every write and sync wait until [`thaw`](Self::thaw).
    pub fn freeze(&self) {
        *self.shared.is_frozen.lock() = true;
    }

    /// Lets writes go on.
    pub fn thaw(&self) {
        *self.shared.is_frozen.lock() = false;
        self.shared.thawed.notify_all();
    }

    fn attach(&self) -> io::Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("kvorum-power".into()),
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoExec,
        ];
        let session = fuser::spawn_mount(Mounted(self.shared.clone()), &self.path, &config)?;
        *self.session.lock() = Some(session);
        Ok(())
    }

    fn detach(&self) -> io::Result<()> {
        self.thaw();
        let Some(session) = self.session.lock().take() else { return Ok(()) };
        // A process that is being started still has copies of its parent's open files for a moment.
        let give_up_at = Instant::now() + BUSY_FOR;
        while let Err(error) = unmount(&self.path, UnmountFlags::empty()) {
            if error != Errno::BUSY || Instant::now() >= give_up_at {
                // Its last file is closed later, and its thread ends then; the path is free from here on.
                unmount(&self.path, UnmountFlags::DETACH)?;
                drop(session);
                return Ok(());
            }
            std::thread::sleep(BUSY_PAUSE);
        }
        // Its thread ends once the kernel has let go of the file system, which may be a moment later.
        session.join()
    }
}

impl Drop for PowerDisk {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            eprintln!("{} could not be unmounted: {error}", self.path.display());
        }
    }
}

struct Mounted(Arc<Shared>);

fn errno(refused: Refused) -> fuser::Errno {
    match refused {
        Refused::NotFound => fuser::Errno::ENOENT,
        Refused::Exists => fuser::Errno::EEXIST,
        Refused::NotEmpty => fuser::Errno::ENOTEMPTY,
        Refused::NotADirectory => fuser::Errno::ENOTDIR,
        Refused::IsADirectory => fuser::Errno::EISDIR,
        Refused::Full => fuser::Errno::ENOSPC,
        Refused::Off => fuser::Errno::EIO,
    }
}

fn attributes(found: Attributes) -> FileAttr {
    let now = SystemTime::now();
    let (kind, perm) =
        if found.is_directory { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o644) };
    FileAttr {
        ino: INodeNo(found.ino),
        size: found.size_bytes,
        blocks: found.size_bytes.div_ceil(512),
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm,
        nlink: found.links,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn entry(result: Result<Attributes, Refused>, reply: ReplyEntry) {
    match result {
        Ok(found) => reply.entry(&REMEMBER, &attributes(found), Generation(0)),
        Err(refused) => reply.error(errno(refused)),
    }
}

fn attr(result: Result<Attributes, Refused>, reply: ReplyAttr) {
    match result {
        Ok(found) => reply.attr(&REMEMBER, &attributes(found)),
        Err(refused) => reply.error(errno(refused)),
    }
}

fn empty(result: Result<(), Refused>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(refused) => reply.error(errno(refused)),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.0.volume.lock().lookup(parent.0, name), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        attr(self.0.volume.lock().attributes(ino.0), reply);
    }

    /// Owners, modes and times are not kept: nodes do not look at them.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut volume = self.0.volume.lock();
        let resized = size.map_or(Ok(()), |size| volume.truncate(ino.0, size));
        attr(resized.and_then(|()| volume.attributes(ino.0)), reply);
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        entry(self.0.volume.lock().make_directory(parent.0, name), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.volume.lock().unlink(parent.0, name), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.0.volume.lock().remove_directory(parent.0, name), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(fuser::Errno::EINVAL);
        }
        empty(self.0.volume.lock().rename((parent.0, name), (new_parent.0, new_name)), reply);
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.0.volume.lock().link(ino.0, parent.0, name), reply);
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.volume.lock().open(ino.0) {
            Ok(()) => reply.opened(FileHandle(0), FopenFlags::empty()),
            Err(refused) => reply.error(errno(refused)),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.0.volume.lock().create(parent.0, name) {
            Ok(made) => {
                let (handle, flags) = (FileHandle(0), FopenFlags::empty());
                reply.created(&REMEMBER, &attributes(made), Generation(0), handle, flags);
            }
            Err(refused) => reply.error(errno(refused)),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.volume.lock().read(ino.0, offset, size as usize) {
            Ok(bytes) => reply.data(bytes),
            Err(refused) => reply.error(errno(refused)),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.wait_thawed();
        match self.0.volume.lock().write(ino.0, offset, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(refused) => reply.error(errno(refused)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // A close keeps nothing.
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.volume.lock().close(ino.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.0.wait_thawed();
        empty(self.0.volume.lock().sync_file(ino.0), reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(self.0.volume.lock().sync_directory(ino.0), reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let names = match self.0.volume.lock().list(ino.0) {
            Ok(names) => names,
            Err(refused) => return reply.error(errno(refused)),
        };
        // Where `..` leads is for the kernel to know.
        let dots = [".", ".."].map(|dot| (ino.0, FileType::Directory, dot.into()));
        let kind =
            |found: &Attributes| if found.is_directory { FileType::Directory } else { FileType::RegularFile };
        let all =
            dots.into_iter().chain(names.into_iter().map(|(name, found)| (found.ino, kind(&found), name)));
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, (ino, kind, name)) in all.enumerate().skip(from) {
            if reply.add(INodeNo(ino), place as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let usage = self.0.volume.lock().usage();
        let blocks = usage.capacity_bytes / u64::from(BLOCK_BYTES);
        let free = blocks.saturating_sub(usage.used_bytes.div_ceil(u64::from(BLOCK_BYTES)));
        reply.statfs(blocks, free, free, 0, 0, BLOCK_BYTES, MAX_NAME_BYTES, BLOCK_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, OpenOptions};
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// Real files through the kernel. Where nothing can be mounted the volume's own tests must do.
    #[test]
    fn files_in_the_mounted_volume_are_as_they_were_synced() {
        if let Err(reason) = available() {
            return crate::hosts::not_run(&reason);
        }
        let dir = tempfile::tempdir().expect("makes a directory");
        let disk = PowerDisk::mount(dir.path(), 64 << 20).expect("mounts");
        let path = dir.path().join("sub/file");
        std::fs::create_dir(dir.path().join("sub")).expect("makes a directory");
        let mut file = File::create(&path).expect("creates");
        file.write_all(b"synced").expect("writes");
        file.sync_all().expect("syncs");
        for directory in [dir.path().join("sub"), dir.path().to_owned()] {
            File::open(directory).expect("opens").sync_all().expect("syncs");
        }
        std::fs::write(dir.path().join("sub/other"), b"never synced").expect("writes");
        assert_eq!(std::fs::read_dir(dir.path().join("sub")).expect("lists").count(), 2);
        disk.cut();
        assert!(file.write_all(b" not synced").is_err() || file.sync_all().is_err(), "the power is off");
        drop(file);
        disk.restore(0).expect("comes back");
        assert_eq!(std::fs::read(&path).expect("is there"), b"synced");
        assert!(!dir.path().join("sub/other").exists());
        let file = OpenOptions::new().write(true).open(&path).expect("opens");
        file.write_all_at(b"SYNC", 0).expect("writes");
        file.sync_data().expect("syncs");
        drop(file);
        disk.cut();
        disk.restore(1).expect("comes back");
        assert_eq!(std::fs::read(&path).expect("is there"), b"SYNCed");
        assert!(disk.syncs() >= 4);
    }
}
