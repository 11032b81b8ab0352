//! The descriptor: which version runs, and which base directory it serves (CONTRACT §5).
//! From 0.0.28 each call makes t3 send a trace to its vendor, so it is asked seldom.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::http::Client;
use super::version::Version;
use crate::outcome::{Failure, Reason};

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

/// The id t3 wrote into its base directory; `None` where there is none or it may not be read (CONTRACT §8).
fn environment_id(base_dir: &Path) -> Option<String> {
    let text = std::fs::read_to_string(base_dir.join("userdata/environment-id")).ok()?;
    let id = text.trim();
    (!id.is_empty()).then(|| id.to_owned())
}
