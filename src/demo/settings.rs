//! What the demo's files say: who is served, the configuration, the tag that the enforcer follows, and who runs which
//! build at first.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;

use super::{FLEET, HOST_COMMAND, Instance, NIGHTLY, World, identity, supervisor};

/// What the enforcer follows.
const TAG: &str = "nightly";

impl World {
    /// The links of a host on which the builds lie side by side, and what was proven there.
    pub(super) fn link(&self) -> anyhow::Result<()> {
        let users = self.dir.join("installs/users");
        fs::create_dir(&users).with_context(|| format!("cannot create {}", users.display()))?;
        let default = self.dir.join("installs/default");
        let linked = FLEET
            .iter()
            .try_for_each(|(user, version)| symlink(Path::new("..").join(version), users.join(user)));
        linked.and_then(|()| symlink(HOST_COMMAND, default)).context("cannot link users to their builds")?;
        self.write("installs/last-good", &format!("{HOST_COMMAND}\n"))?;
        Ok(())
    }

    /// Writes everything that the service, the gate and the enforcer read; answers the configuration's place.
    pub(super) fn configure(
        &self,
        fleet: &[Instance],
        listen: SocketAddr,
        door: SocketAddr,
    ) -> anyhow::Result<PathBuf> {
        let ports: Vec<_> = fleet.iter().map(|Instance { user, port, .. }| (*user, *port)).collect();
        let supervisor =
            supervisor::write(&self.dir, &ports).context("cannot write the demo's supervisor")?;
        let command = |verb: &str| json!([supervisor, verb, "{user}"]);
        for (name, mode) in [("backups", 0o700), ("tags", 0o755)] {
            let path = self.dir.join(name);
            let made = fs::DirBuilder::new().mode(mode).create(&path);
            made.with_context(|| format!("cannot create {}", path.display()))?;
        }
        self.write(&format!("tags/{TAG}"), &format!("{NIGHTLY}\n"))?;
        let key = format!("{:032x}{:032x}\n", rand::random::<u128>(), rand::random::<u128>());
        let key = self.write("probe.key", &key)?;
        let served = fleet
            .iter()
            .map(|Instance { user, port, .. }| (identity(user), json!({ "os_user": user, "port": port })));
        let served = serde_json::Map::from_iter(served);
        let table = self.write("dispatch.json", &serde_json::to_string_pretty(&served)?)?;
        let config = json!({
            "state_dir": self.dir.join("state"),
            "inventory": {
                "dispatch_table": table,
                "base_dir": format!("{}/home/{{user}}/.t3", self.dir.display()),
                // The demo's people have no accounts here.
                "accounts": false,
            },
            "t3": { "installs": self.dir.join("installs"), "command": [self.t3(HOST_COMMAND)] },
            "pins": { "last_good": self.dir.join("installs/last-good") },
            "probe": {
                "handshake_interval": "30s",
                "front": door.to_string(),
                "front_interval": "15s",
                "state_interval": "5s",
            },
            "backup": {
                "dir": self.dir.join("backups"),
                "stop_command": command("stop"),
                "start_command": command("start"),
            },
            "dispatch": {
                "inside_serve": true,
                "listen": [door.to_string()],
                // The demo's own edges are this very process.
                "trusted_uids": [nix::unistd::geteuid().as_raw()],
                // The enforcer goes through the front door too, and is another process.
                "probe_key_file": key,
            },
            "gate": {
                "hold": "2s",
                "keep_free_mib": 64,
                // The stand-in's builds are this program under other names.
                "expose": self.program.parent().into_iter().collect::<Vec<_>>(),
                // A laptop without bubblewrap is no reason to show nothing.
                "require_box": false,
            },
            "enforce": {
                "track": TAG,
                "track_command": ["cat", format!("{}/tags/{{tag}}", self.dir.display())],
                "stop_command": command("stop"),
                "start_command": command("start"),
                "soak": "20s",
                "login_interval": "5s",
                // Who is behind comes first: there the new build changes the database as well.
                "canaries": ["cid"],
            },
            "operator": { "listen": listen.to_string() },
        });
        self.write("config.toml", &toml::to_string(&config)?)
    }

    /// A file of the demo's own, for nobody else to read.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir.join(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}
