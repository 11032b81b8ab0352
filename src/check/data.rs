//! What snapshots, restores and acting as users need.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::AccessFlags;

use super::{Item, Level};
use crate::backup::{self, Standing};
use crate::config::Config;
use crate::helper;
use crate::inventory;

pub fn items(config: &Config) -> Vec<Item> {
    let mut items = vec![tree(&config.backup.dir, config.helper.is_used())];
    items.extend(snapshots(&config.backup, &config.inventory));
    items.extend(commands(&config.backup));
    items.extend(helper(&config.helper, &config.inventory));
    items
}

fn tree(dir: &Path, by_root: bool) -> Item {
    let item =
        |level, message: String| Item::new(level, "backup.dir", format!("{}: {message}", dir.display()));
    let Ok(metadata) = dir.metadata() else {
        let who = if by_root {
            "as root: install -d -m 0755, and enable t3-prober-backup.timer"
        } else {
            "for our account: install -d -m 0755"
        };
        return item(Level::Warn, format!("it does not exist, so no snapshots are taken; make it {who}"));
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_dir() {
        item(Level::Error, "it is not a directory; move the file away".to_owned())
    } else if mode & 0o022 != 0 {
        item(
            Level::Error,
            format!("others can write to it (mode {mode:04o}), and delete snapshots; run chmod 0755 on it"),
        )
    } else if nix::unistd::access(dir, AccessFlags::R_OK | AccessFlags::X_OK).is_err() {
        item(
            Level::Error,
            format!(
                "this account cannot look into it (mode {mode:04o}), so how old snapshots are is not known; run chmod 0755 on it"
            ),
        )
    } else {
        item(Level::Ok, "how everybody's snapshots stand can be read".to_owned())
    }
}

/// Whose state could not be brought back.
fn snapshots(section: &backup::Section, inventory: &inventory::Section) -> Option<Item> {
    if section.interval.is_zero() || !section.dir.is_dir() {
        return None;
    }
    let inventory = inventory::read_once(inventory).ok()?;
    let late = section.interval * 2;
    let is_late = |user: &str| {
        let proven = Standing::read(section, user).ok().flatten().and_then(|standing| standing.proven);
        let age = proven.map(|proven| SystemTime::now().duration_since(proven.at).unwrap_or_default());
        age.is_none_or(|age| age > late)
    };
    let users = inventory.targets().iter().map(|target| target.user.as_str());
    let late: Vec<_> = users.filter(|user| is_late(user)).collect();
    let (level, message) = if late.is_empty() {
        (Level::Ok, "everybody has a verified snapshot that is young enough".to_owned())
    } else {
        let names = late.join(", ");
        (
            Level::Warn,
            format!("no verified snapshot within twice the interval: {names}; t3-prober backup list"),
        )
    };
    Some(Item::new(level, "backup.interval", message))
}

fn commands(section: &backup::Section) -> Option<Item> {
    let missing = section.stop_command.is_empty() || section.start_command.is_empty();
    missing.then(|| {
        let message = "without stop_command and start_command a restore waits, at most 10 minutes each, for \
                       somebody to stop and to start the instance by hand";
        Item::new(Level::Warn, "backup.stop_command", message.to_owned())
    })
}

fn helper(section: &helper::Section, inventory: &inventory::Section) -> Vec<Item> {
    let mut items = Vec::new();
    if let Some(socket) = &section.socket {
        let shown = socket.display();
        let (level, message) = match UnixStream::connect(socket) {
            Ok(_) => (Level::Ok, format!("{shown} answers")),
            Err(error) => (
                Level::Error,
                format!(
                    "{shown}: {error}; run systemctl enable --now t3-prober-helper.socket, and see that our account is in its group"
                ),
            ),
        };
        items.push(Item::new(level, "helper.socket", message));
    }
    if section.is_used() && inventory.user_map.is_none() {
        let message = "the helper acts only for users in the user map; set [inventory] user_map";
        items.push(Item::new(Level::Error, "inventory.user_map", message.to_owned()));
    }
    items
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_tree_that_users_could_write_to_is_an_error_and_none_at_all_a_warning() {
        let dir = tempfile::tempdir().expect("a directory");
        for (mode, expected) in
            [(0o755, Level::Ok), (0o700, Level::Ok), (0o777, Level::Error), (0o775, Level::Error)]
        {
            set_permissions(dir.path(), Permissions::from_mode(mode)).expect("a mode");
            assert_eq!(tree(dir.path(), false).level, expected, "{mode:o}");
        }
        let none = tree(&dir.path().join("none"), true);
        assert_eq!(none.level, Level::Warn);
        assert!(none.message.contains("t3-prober-backup.timer"), "{none}");
    }

    #[test]
    fn whose_state_could_not_be_brought_back_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let table = dir.path().join("dispatch.json");
        std::fs::write(
            &table,
            r#"{"ann@x":{"os_user":"ann","port":4001},"bob@x":{"os_user":"bob","port":4002}}"#,
        )
        .expect("a table");
        let inventory =
            inventory::Section { dispatch_table: table, accounts: false, ..inventory::Section::default() };
        let section = backup::Section { dir: dir.path().to_owned(), ..backup::Section::default() };
        let standing = |age: Duration| {
            let at = humantime::format_rfc3339_millis(SystemTime::now() - age);
            let text = format!(r#"{{"count":1,"proven":{{"at":"{at}","bytes":1,"level":30}}}}"#);
            std::fs::write(dir.path().join("ann.json"), text).expect("a standing");
            snapshots(&section, &inventory).expect("an item").to_string()
        };
        assert!(standing(Duration::from_secs(60)).contains("twice the interval: bob;"));
        assert!(standing(section.interval * 3).contains("twice the interval: ann, bob;"));
    }

    #[test]
    fn a_helper_that_does_not_answer_or_has_no_map_is_an_error() {
        let section =
            helper::Section { socket: Some("/nonexistent/sock".into()), ..helper::Section::default() };
        let inventory = inventory::Section { user_map: None, ..inventory::Section::default() };
        let items = helper(&section, &inventory);
        assert!(items.len() == 2 && items.iter().all(|item| item.level == Level::Error), "{items:?}");
        assert_eq!(helper(&helper::Section::default(), &inventory), []);
    }
}
