//! The base directory as t3 lays it out (CONTRACT §8): which files exist, with which modes, and who makes them.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::clock::Millis;
use super::release::Release;
use super::token::{self, Key};

const SHARED: &[&str] = &["caches", "userdata", "userdata/attachments", "userdata/logs", "worktrees"];
const LOGS: &[&str] = &["userdata/logs/provider", "userdata/logs/terminals"];

/// A base directory (`--base-dir`).
#[derive(Clone, Debug)]
pub struct Home(PathBuf);

/// What `server-runtime.json` says about the running server.
pub struct Runtime<'a> {
    pub host: &'a str,
    pub port: u16,
}

impl Home {
    pub fn new(path: &Path) -> io::Result<Self> {
        std::path::absolute(path).map(Self)
    }

    /// What a command line tool call leaves in a new base directory.
    pub fn prepare(&self) -> io::Result<()> {
        for folder in SHARED.iter().chain(LOGS) {
            folder_with_mode(&self.0.join(folder), 0o755)?;
        }
        folder_with_mode(&self.0.join("userdata/secrets"), 0o700)?;
        write_once(&self.0.join("userdata/secrets/server-signing-key.bin"), &Key::generate(), 0o600)
    }

    /// What a server adds to that.
    pub fn prepare_server(&self, release: &Release) -> io::Result<()> {
        self.prepare()?;
        write_once(
            &self.userdata().join("environment-id"),
            format!("{}\n", token::uuid()).as_bytes(),
            0o644,
        )?;
        write_once(&self.userdata().join("anonymous-id"), token::uuid().as_bytes(), 0o644)?;
        write_once(&self.userdata().join("keybindings.json"), b"[]\n", 0o644)?;
        let grok = release.since(26).then_some("grok");
        for provider in ["claudeAgent", "codex", "cursor", "opencode"].into_iter().chain(grok) {
            write_once(&self.0.join(format!("caches/{provider}.json")), b"{}\n", 0o644)?;
        }
        if release.since(26) {
            let pair: [[u8; 32]; 2] = [Key::generate(), Key::generate()];
            let path = self.userdata().join("secrets/cloud-link-ed25519-key-pair.bin");
            write_once(&path, pair.as_flattened(), 0o600)?;
        }
        Ok(())
    }

    pub fn userdata(&self) -> PathBuf {
        self.0.join("userdata")
    }

    pub fn database(&self) -> PathBuf {
        self.userdata().join("state.sqlite")
    }

    pub fn faults(&self) -> PathBuf {
        self.userdata().join("sim-faults.json")
    }

    pub fn trace(&self) -> PathBuf {
        self.userdata().join("logs/server.trace.ndjson")
    }

    pub fn runtime(&self) -> PathBuf {
        self.userdata().join("server-runtime.json")
    }

    pub fn environment_id(&self) -> io::Result<String> {
        fs::read_to_string(self.userdata().join("environment-id")).map(|text| text.trim().to_owned())
    }

    pub fn key(&self) -> io::Result<Key> {
        fs::read(self.userdata().join("secrets/server-signing-key.bin")).map(Key::new)
    }

    pub fn write_runtime(&self, runtime: &Runtime<'_>) -> io::Result<()> {
        let shown = if runtime.host == "0.0.0.0" { "127.0.0.1" } else { runtime.host };
        let document = format!(
            "{{\"version\":1,\"pid\":{},\"host\":\"{}\",\"port\":{},\"origin\":\"http://{shown}:{}\",\"startedAt\":\"{}\"}}\n",
            std::process::id(),
            runtime.host,
            runtime.port,
            runtime.port,
            Millis::now().iso(),
        );
        fs::write(self.runtime(), document)
    }

    /// Whether a server of this base directory is alive, by its pid.
    pub fn served(&self) -> bool {
        let pid = fs::read(self.runtime())
            .ok()
            .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
            .and_then(|document| document["pid"].as_u64());
        pid.is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }
}

fn folder_with_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}

fn write_once(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).mode(mode).open(path) {
        Ok(mut file) => file.write_all(content),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
