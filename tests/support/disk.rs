//! A small file system of its own, to be filled; root only.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A small file system of its own.
pub struct Disk(PathBuf);

impl Disk {
    /// Holds what was in the directory before.
    pub fn under(path: PathBuf, size: &str) -> Self {
        let kept = path.with_extension("kept");
        if path.exists() {
            fs::rename(&path, &kept).expect("renamed");
        }
        fs::create_dir_all(&path).expect("a directory");
        let options = format!("size={size},mode=700");
        done(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&path));
        let disk = Self(path);
        if kept.exists() {
            done(Command::new("cp").arg("-a").arg(kept.join(".")).arg(&disk.0));
        }
        disk
    }

    /// Takes what is free.
    pub fn fill(&self) {
        let mut fill = Command::new("dd");
        fill.arg("if=/dev/zero").arg(format!("of={}", self.filler().display())).args(["bs=4k"]);
        // It ends where the disk does.
        let filled = fill.stderr(Stdio::null()).status().expect("dd");
        assert!(!filled.success(), "the disk has no end");
    }

    pub fn empty(&self) {
        fs::remove_file(self.filler()).expect("removed");
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn done(command: &mut Command) {
    assert!(command.status().expect("it runs").success(), "{command:?}");
}
