//! Where versions differ, in words: plain functions of what was read.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Versions;
use crate::outcome::Place;
use crate::t3::Mint;
use crate::t3::version::Version;

/// What one instance runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    pub user: String,
    pub version: Version,
    /// Whether a command of exactly this version is installed beside the others.
    pub has_install: bool,
}

/// What a skew does to minting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Minting {
    /// There is a command of the running version.
    On,
    /// There is none, and only the kept session mints.
    ByKeptSession,
    /// There is none, and the command was to mint.
    Off,
}

/// A way in which the places or an instance do not say the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// It cannot be told what this place says.
    Unknown { place: Place, why: String },
    /// The place names another version than the installed one.
    Drift { place: Place, version: Version, installed: Version },
    /// The instance runs another version than the installed one.
    Skew { user: String, running: Version, installed: Version, minting: Minting },
}

/// What a difference is about: two differences of one subject are one that goes on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    Unknown(Place),
    Drift(Place),
    Skew(String),
}

impl Subject {
    /// Whose instance it is about, where it is about one.
    pub fn user(&self) -> Option<&str> {
        match self {
            Self::Skew(user) => Some(user),
            Self::Unknown(_) | Self::Drift(_) => None,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(place) => write!(f, "{place} unknown"),
            Self::Drift(place) => write!(f, "drift of {place}"),
            Self::Skew(user) => write!(f, "skew of {user}"),
        }
    }
}

impl Versions {
    /// Every difference, places first.
    pub fn differences(&self, running: &[Running], mint: Mint) -> Vec<Difference> {
        let unknown = |place, read: &Result<Option<Version>, String>| {
            read.as_ref().err().map(|why| Difference::Unknown { place, why: why.clone() })
        };
        let mut differences: Vec<_> = [
            unknown(Place::Pinned, &self.pinned),
            unknown(Place::Installed, &self.installed),
            unknown(Place::LastGood, &self.last_good),
        ]
        .into_iter()
        .flatten()
        .collect();
        let Ok(Some(installed)) = &self.installed else { return differences };
        differences.extend(self.known().filter(|(_, version)| *version != installed).map(
            |(place, version)| Difference::Drift {
                place,
                version: version.clone(),
                installed: installed.clone(),
            },
        ));
        differences.extend(running.iter().filter(|running| running.version != *installed).map(|running| {
            let minting = match mint {
                _ if running.has_install => Minting::On,
                Mint::Keeper => Minting::ByKeptSession,
                Mint::Cli | Mint::Command => Minting::Off,
            };
            Difference::Skew {
                user: running.user.clone(),
                running: running.version.clone(),
                installed: installed.clone(),
                minting,
            }
        }));
        differences
    }
}

impl Difference {
    pub fn subject(&self) -> Subject {
        match self {
            Self::Unknown { place, .. } => Subject::Unknown(*place),
            Self::Drift { place, .. } => Subject::Drift(*place),
            Self::Skew { user, .. } => Subject::Skew(user.clone()),
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { place: Place::Pinned, why } => {
                write!(f, "the pinned version cannot be told: {why}")
            }
            Self::Unknown { place: Place::Installed, why } => {
                write!(f, "the installed version cannot be told: {why}")
            }
            Self::Unknown { place: Place::LastGood, why } => {
                write!(f, "the last good version cannot be told: {why}")
            }
            Self::Unknown { place: Place::Tracked, why } => {
                write!(f, "what the followed tag stands for cannot be told: {why}")
            }
            Self::Drift { place: Place::Tracked, version, installed } => {
                write!(f, "the followed tag stands for {version}, installed is {installed}")
            }
            Self::Drift { place: Place::LastGood, version, installed } => {
                write!(
                    f,
                    "{version} is the last good version, installed is {installed}: it is not proven yet"
                )
            }
            Self::Drift { version, installed, .. } => {
                write!(f, "{version} is pinned, installed is {installed}: whoever installs next moves it")
            }
            Self::Skew { user, running, installed, minting } => {
                write!(f, "{user} runs {running}, installed is {installed}: ")?;
                match minting {
                    Minting::On => write!(f, "the install of {running} mints until {user} restarts"),
                    Minting::ByKeptSession => write!(
                        f,
                        "no t3 command may run for {user}, and minting rests on the kept session until {user} restarts"
                    ),
                    Minting::Off => write!(f, "minting is off until {user} restarts"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V24: Version = Version::new(0, 0, 24);
    const V26: Version = Version::new(0, 0, 26);

    fn versions(pinned: Version, installed: Version) -> Versions {
        let (pinned, installed) = (Ok(Some(pinned)), Ok(Some(installed)));
        Versions { pinned, installed, last_good: Ok(None), tracked: None }
    }

    fn bob(has_install: bool) -> [Running; 1] {
        [Running { user: "bob".to_owned(), version: V24, has_install }]
    }

    fn said(differences: &[Difference]) -> Vec<String> {
        differences.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn where_everything_is_the_same_nothing_is_said() {
        assert_eq!(versions(V24, V24).differences(&bob(false), Mint::Keeper), []);
    }

    #[test]
    fn a_skew_says_who_runs_what_and_what_it_does_to_minting() {
        let versions = versions(V26, V26);
        assert_eq!(
            said(&versions.differences(&bob(false), Mint::Cli)),
            ["bob runs 0.0.24, installed is 0.0.26: minting is off until bob restarts"]
        );
        assert_eq!(
            said(&versions.differences(&bob(false), Mint::Keeper)),
            [
                "bob runs 0.0.24, installed is 0.0.26: no t3 command may run for bob, and minting rests on the kept session until bob restarts"
            ]
        );
        assert_eq!(
            said(&versions.differences(&bob(true), Mint::Cli)),
            ["bob runs 0.0.24, installed is 0.0.26: the install of 0.0.24 mints until bob restarts"]
        );
    }

    #[test]
    fn each_place_is_held_against_what_is_installed() {
        let mut versions = versions(V24, V26);
        versions.last_good = Ok(Some(V24));
        versions.tracked = Some(("nightly".to_owned(), Version::new(0, 0, 33)));
        assert_eq!(
            said(&versions.differences(&[], Mint::Keeper)),
            [
                "0.0.24 is pinned, installed is 0.0.26: whoever installs next moves it",
                "0.0.24 is the last good version, installed is 0.0.26: it is not proven yet",
                "the followed tag stands for 0.0.33, installed is 0.0.26",
            ]
        );
    }

    #[test]
    fn without_an_installed_version_nothing_is_called_different_from_it() {
        let mut versions = versions(V24, V24);
        versions.installed = Err("no command 't3' on the path".to_owned());
        assert_eq!(
            said(&versions.differences(&bob(false), Mint::Cli)),
            ["the installed version cannot be told: no command 't3' on the path"]
        );
    }
}
