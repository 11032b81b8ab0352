//! `t3_credential_…`: which long-lived credentials are watched, and when each ends.

use std::sync::Arc;
use std::time::SystemTime;

use super::book::metrics;
use super::labels::labels;
use super::series::{ByLabels, Info, Number, unix_seconds};
use crate::outcome::{CredentialState, Evidence};

labels! {
    pub struct OfCredential {
        /// what the configuration calls the credential
        pub name: Arc<str>,
        /// the OS user whose instance depends on it; empty where it is nobody's in particular
        pub user: Option<Arc<str>>,
    }
}

labels! {
    pub struct OfCredentialAndStanding {
        /// what the configuration calls the credential
        pub name: Arc<str>,
        /// the OS user whose instance depends on it; empty where it is nobody's in particular
        pub user: Option<Arc<str>>,
        /// how it stands
        pub standing: CredentialState,
    }
}

labels! {
    pub struct OfCredentialAndEvidence {
        /// what the configuration calls the credential
        pub name: Arc<str>,
        /// the OS user whose instance depends on it; empty where it is nobody's in particular
        pub user: Option<Arc<str>>,
        /// how its end is known
        pub evidence: Evidence,
    }
}

metrics! {
    pub struct Credential {
        /// The credentials that are watched, and how each stands
        info: Info<OfCredentialAndStanding> = "t3_credential_info",
        /// When the credential ends; absent where that was never learned
        expiry: ByLabels<OfCredentialAndEvidence, Number> = "t3_credential_expiry_timestamp_seconds",
        /// When the end of the credential was last confirmed by its source
        last_seen: ByLabels<OfCredential, Number> = "t3_credential_last_seen_timestamp_seconds",
    }
}

/// One credential, as it stands now.
#[derive(Clone, Copy, Debug)]
pub struct Stands<'a> {
    pub name: &'a str,
    pub user: Option<&'a str>,
    pub standing: CredentialState,
    /// When it ends, how that is known, and when it was last confirmed.
    pub known: Option<(SystemTime, Evidence, SystemTime)>,
}

impl Credential {
    /// States every credential; one that was stated before and is not any more vanishes.
    pub fn state(&self, all: &[Stands<'_>]) {
        let of = |stands: &Stands<'_>| (Arc::<str>::from(stands.name), stands.user.map(Arc::<str>::from));
        let info = all.iter().map(|stands| {
            let (name, user) = of(stands);
            OfCredentialAndStanding { name, user, standing: stands.standing }
        });
        self.info.state(info.collect());
        let is_of =
            |stands: &Stands<'_>, name: &str, user: Option<&str>| stands.name == name && stands.user == user;
        self.expiry.retain(|series| {
            all.iter().any(|stands| {
                is_of(stands, &series.name, series.user.as_deref())
                    && stands.known.is_some_and(|(_, evidence, _)| evidence == series.evidence)
            })
        });
        self.last_seen.retain(|series| {
            all.iter()
                .any(|stands| is_of(stands, &series.name, series.user.as_deref()) && stands.known.is_some())
        });
        for stands in all {
            let Some((end, evidence, seen)) = stands.known else { continue };
            let (name, user) = of(stands);
            self.last_seen.with(OfCredential { name: name.clone(), user: user.clone() }, |at| {
                at.set(unix_seconds(seen));
            });
            self.expiry.with(OfCredentialAndEvidence { name, user, evidence }, |at| {
                at.set(unix_seconds(end));
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Build, Format, Metrics};

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_753_000_000)
    }

    fn claude() -> Stands<'static> {
        let known = Some((noon() + Duration::from_secs(3600), Evidence::Mtime, noon()));
        Stands { name: "claude", user: Some("ann"), standing: CredentialState::ExpiresIn7Days, known }
    }

    #[test]
    fn a_credential_shows_when_it_ends_and_how_that_is_known_now_and_vanishes_when_it_is_not_watched_any_more()
     {
        let metrics = Metrics::new(Build::THIS);
        let credentials = || {
            let document = metrics.render(Format::Classic).concat();
            let of_credentials = document.lines().filter(|line| line.starts_with("t3_credential_"));
            of_credentials.map(str::to_owned).collect::<Vec<_>>()
        };
        let user = r#"name="claude",user="ann""#;
        metrics.credential.state(&[claude()]);
        assert_eq!(
            credentials(),
            [
                format!(r#"t3_credential_info{{{user},standing="expires_in_7_days"}} 1"#),
                format!(r#"t3_credential_expiry_timestamp_seconds{{{user},evidence="mtime"}} 1753003600.0"#),
                format!("t3_credential_last_seen_timestamp_seconds{{{user}}} 1753000000.0"),
            ]
        );
        let renewed =
            (noon() + Duration::from_secs(7200), Evidence::Expiry, noon() + Duration::from_secs(60));
        metrics.credential.state(&[Stands {
            standing: CredentialState::Valid,
            known: Some(renewed),
            ..claude()
        }]);
        assert_eq!(
            credentials(),
            [
                format!(r#"t3_credential_info{{{user},standing="valid"}} 1"#),
                format!(r#"t3_credential_expiry_timestamp_seconds{{{user},evidence="expiry"}} 1753007200.0"#),
                format!("t3_credential_last_seen_timestamp_seconds{{{user}}} 1753000060.0"),
            ]
        );
        metrics.credential.state(&[Stands {
            user: None,
            standing: CredentialState::NeverSeen,
            known: None,
            ..claude()
        }]);
        assert_eq!(credentials(), [r#"t3_credential_info{name="claude",user="",standing="never_seen"} 1"#]);
        metrics.credential.state(&[]);
        assert_eq!(credentials(), Vec::<String>::new());
    }
}
