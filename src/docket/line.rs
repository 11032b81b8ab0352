//! Builds that wait to be judged: each once, in the order they were asked for, and no more than a few.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;

use crate::t3::version::Version;

/// More than this is somebody's mistake: a build takes minutes.
const LONGEST: usize = 8;

/// The line, shared by whoever asks and the one who judges.
#[derive(Clone, Debug, Default)]
pub struct Line(Arc<watch::Sender<Standing>>);

/// Who is in it.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    pub running: Option<Version>,
    pub waiting: VecDeque<Version>,
}

#[derive(Debug, thiserror::Error)]
#[error("{LONGEST} versions wait to be judged already; ask again when some are done")]
pub struct Full;

impl Line {
    /// Puts a version in line, unless it is in it; answers whether it was new.
    pub fn ask(&self, version: &Version) -> Result<bool, Full> {
        let mut result = Ok(true);
        self.0.send_if_modified(|line| {
            if line.has(version) {
                result = Ok(false);
            } else if line.waiting.len() >= LONGEST {
                result = Err(Full);
            } else {
                line.waiting.push_back(version.clone());
                return true;
            }
            false
        });
        result
    }

    /// Whether it waits, or is being judged.
    pub fn has(&self, version: &Version) -> bool {
        self.0.borrow().has(version)
    }

    pub fn now(&self) -> Standing {
        self.0.borrow().clone()
    }

    /// Hears of every change.
    pub fn subscribe(&self) -> watch::Receiver<Standing> {
        self.0.subscribe()
    }

    /// Takes the next one, when there is one. Only one may take.
    pub async fn next(&self) -> Version {
        let mut changes = self.0.subscribe();
        loop {
            let mut taken = None;
            self.0.send_if_modified(|line| {
                taken = line.waiting.pop_front();
                line.running.clone_from(&taken);
                taken.is_some()
            });
            if let Some(version) = taken {
                return version;
            }
            // The sender is ours, so this cannot fail.
            let _ = changes.wait_for(|line| !line.waiting.is_empty()).await;
        }
    }

    /// The one that was taken is done; `again` puts it back to the front.
    pub fn done(&self, again: bool) {
        self.0.send_modify(|line| {
            if let Some(version) = line.running.take().filter(|_| again) {
                line.waiting.push_front(version);
            }
        });
    }
}

impl Standing {
    fn has(&self, version: &Version) -> bool {
        self.running.as_ref() == Some(version) || self.waiting.contains(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(patch: u64) -> Version {
        Version::new(0, 0, patch)
    }

    #[tokio::test]
    async fn a_version_is_in_line_once_however_often_it_is_asked_for() {
        let line = Line::default();
        assert!(line.ask(&version(26)).expect("room"));
        assert!(!line.ask(&version(26)).expect("room"));
        assert_eq!(line.next().await, version(26));
        assert!(!line.ask(&version(26)).expect("room"), "it is being judged");
        line.done(false);
        assert!(line.ask(&version(26)).expect("room"));
    }

    #[tokio::test]
    async fn what_was_cut_short_comes_first_again() {
        let line = Line::default();
        for patch in [26, 33] {
            line.ask(&version(patch)).expect("room");
        }
        assert_eq!(line.next().await, version(26));
        line.done(true);
        assert_eq!(line.now().waiting, [version(26), version(33)]);
    }

    #[test]
    fn the_line_has_an_end() {
        let line = Line::default();
        for patch in 0..LONGEST as u64 {
            line.ask(&version(patch)).expect("room");
        }
        let error = line.ask(&version(99)).expect_err("too many");
        assert!(error.to_string().starts_with("8 versions wait"), "{error}");
        assert!(!line.ask(&version(0)).expect("who is in line stays in line"));
    }
}
