//! The descriptor: which version runs, and which base directory it serves (CONTRACT §5).
//! From 0.0.28 each call makes t3 send a trace to its vendor, so it is asked seldom.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::http::Client;
use super::small_file;
use super::version::Version;
use crate::outcome::{Failure, Reason};

/// A UUID has 36 characters.
const LONGEST_ID: u64 = 128;

/// `GET /.well-known/t3/environment`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub environment_id: String,
    /// The version of the running server, not of any command on disk.
    pub version: Version,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    environment_id: String,
    server_version: String,
}

/// Reads the descriptor and, where the file may be read, makes sure that it is this base directory's server.
///
/// What it says decides which t3 command runs on the user's database, so nobody but the owner is asked: a stranger on
/// the port could otherwise name a version whose command migrates it.
pub async fn read(client: &mut Client<'_>, limit: Duration) -> Result<Descriptor, Failure> {
    let answer = client.get_from_owner("/.well-known/t3/environment", limit).await?;
    if answer.status.as_u16() != 200 {
        return Err(answer.unexpected("GET /.well-known/t3/environment"));
    }
    let document: Document = answer.json()?;
    let version = document
        .server_version
        .parse()
        .map_err(|error| Failure::new(Reason::Malformed, format!("serverVersion: {error}")))?;
    let descriptor = Descriptor { environment_id: document.environment_id, version };
    match environment_id(&client.instance.base_dir) {
        Some(expected) if expected != descriptor.environment_id => Err(Failure::new(
            Reason::WrongInstance,
            format!(
                "port {} serves environment {}, but {} is environment {expected}",
                client.instance.port,
                descriptor.environment_id,
                client.instance.base_dir.display()
            ),
        )),
        _ => Ok(descriptor),
    }
}

/// The id t3 wrote into its base directory; `None` where there is none or it may not be read (CONTRACT §8). Only
/// something like a UUID counts, so that no other file's content can end up in a message.
fn environment_id(base_dir: &Path) -> Option<String> {
    let file = small_file::read(&base_dir.join("userdata/environment-id"), LONGEST_ID)?;
    let id = file.text.trim();
    let plausible = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    plausible.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn base_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("userdata")).expect("userdata");
        dir
    }

    #[test]
    fn the_id_is_what_t3_wrote() {
        let dir = base_dir();
        let id = "0b5c1a52-93f1-4a0c-8c1e-5f5f3a8f0e11";
        std::fs::write(dir.path().join("userdata/environment-id"), format!("{id}\n")).expect("written");
        assert_eq!(environment_id(dir.path()).as_deref(), Some(id));
    }

    #[test]
    fn a_link_a_pipe_or_another_text_in_its_place_is_no_id() {
        let dir = base_dir();
        let path = dir.path().join("userdata/environment-id");
        let secret = dir.path().join("secret");
        std::fs::write(&secret, "abc").expect("written");
        symlink(&secret, &path).expect("a link");
        assert_eq!(environment_id(dir.path()), None);
        std::fs::remove_file(&path).expect("removed");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(environment_id(dir.path()), None);
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "root:x:0:0").expect("written");
        assert_eq!(environment_id(dir.path()), None);
    }
}
