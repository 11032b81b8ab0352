//! Mutations: builds that are broken in themselves, for the gate and the rollout to find. Where a fault does the same,
//! the mutation is that fault, always on.

use std::str::FromStr;

use clap::ValueEnum;

use super::fault::{Fault, On};

/// A way in which a build is broken; `NAME=VALUE` where the line names a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mutation {
    /// The exchange endpoint has a name that nobody knows
    ExchangeRenamed,
    /// The cookie set is not the one announced
    CookieRenamed,
    /// The cookie lacks HttpOnly
    CookieWithoutHttpOnly,
    /// The exchange answers 200 without a cookie
    NoCookie,
    /// The session call says false to every cookie
    SessionStaysFalse,
    /// Minting by command prints a credential that is not in the database
    MintPrintsAnotherKey,
    /// The exchange takes every credential
    ExchangeAcceptsAll,
    /// The migration fails, and the server with it
    MigrationFails,
    /// The migration deletes all messages
    MigrationDropsMessages,
    /// The migration gives events a column that older builds do not fill
    WayBackBreaks,
    /// Each start migrates once more
    SecondStartMigrates,
    /// The history does not load
    HistoryDoesNotLoad,
    /// Adding a project is refused
    WritesRefused,
    /// The upgrade is answered 200
    #[value(name = "socket-200")]
    Socket200,
    /// Calls over the WebSocket are never answered
    RpcSilent,
    /// The start takes VALUE seconds longer (default 30)
    SlowStart,
    /// The server ends with an error VALUE seconds after its start (default 5)
    CrashesSoon,
    /// SIGTERM is ignored
    IgnoresSigterm,
    /// From login VALUE (default 3) on, good credentials are answered 500
    FailsOnThirdLogin,
    /// Nobody can log in where a project's folder contains VALUE (default "/")
    FailsForOneUser,
    /// VALUE seconds after the start (default 90), nobody can log in
    FailsLater,
    /// Whatever comes with X-Forwarded-For is answered 500
    FailsBehindProxy,
}

/// The mutations of one build.
#[derive(Clone, Debug, Default)]
pub struct Mutations(Vec<Chosen>);

/// One mutation with its value, as written on the command line.
#[derive(Clone, Debug)]
pub struct Chosen {
    mutation: Mutation,
    value: On,
}

impl Mutation {
    fn fault(self) -> Option<Fault> {
        match self {
            Self::ExchangeRenamed => Some(Fault::Exchange404),
            Self::CookieRenamed => Some(Fault::CookieRenamed),
            Self::CookieWithoutHttpOnly => Some(Fault::CookieWithoutHttpOnly),
            Self::NoCookie => Some(Fault::NoCookie),
            Self::SessionStaysFalse => Some(Fault::SessionFalse),
            Self::MintPrintsAnotherKey => Some(Fault::CliMintForeign),
            Self::ExchangeAcceptsAll => Some(Fault::ExchangeAcceptsAll),
            Self::HistoryDoesNotLoad => Some(Fault::HistoryUnloadable),
            Self::WritesRefused => Some(Fault::CliProjectFails),
            Self::Socket200 => Some(Fault::Socket200),
            Self::RpcSilent => Some(Fault::RpcSilent),
            Self::MigrationFails
            | Self::MigrationDropsMessages
            | Self::WayBackBreaks
            | Self::SecondStartMigrates
            | Self::SlowStart
            | Self::CrashesSoon
            | Self::IgnoresSigterm
            | Self::FailsOnThirdLogin
            | Self::FailsForOneUser
            | Self::FailsLater
            | Self::FailsBehindProxy => None,
        }
    }

    /// Whether the build brings one migration more than the release it calls itself.
    pub fn migrates(self) -> bool {
        matches!(
            self,
            Self::MigrationFails
                | Self::MigrationDropsMessages
                | Self::WayBackBreaks
                | Self::SecondStartMigrates
        )
    }
}

impl Mutations {
    pub fn new(chosen: &[Chosen]) -> Self {
        Self(chosen.to_vec())
    }

    pub fn carries(&self, fault: Fault) -> bool {
        self.0.iter().any(|chosen| chosen.mutation.fault() == Some(fault))
    }

    pub fn value(&self, mutation: Mutation) -> Option<On> {
        self.0.iter().find(|chosen| chosen.mutation == mutation).map(|chosen| chosen.value.clone())
    }

    /// Those that bring a migration of their own.
    pub fn migrations(&self) -> impl Iterator<Item = Mutation> {
        self.0.iter().map(|chosen| chosen.mutation).filter(|mutation| mutation.migrates())
    }
}

impl FromStr for Chosen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let mutation = Mutation::from_str(name, false)
            .map_err(|_| format!("no mutation is called '{name}'; --help lists them all"))?;
        Ok(Self { mutation, value: On(value.map(str::to_owned)) })
    }
}

impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(value) = self.mutation.to_possible_value() {
            f.write_str(value.get_name())?;
        }
        self.value.0.iter().try_for_each(|value| write!(f, "={value}"))
    }
}

/// All mutations, a line each, for `--help`.
pub fn listing() -> String {
    let lines = Mutation::value_variants().iter().filter_map(ValueEnum::to_possible_value).map(|value| {
        let help = value.get_help().map(ToString::to_string).unwrap_or_default();
        format!("  {:<26} {help}\n", value.get_name())
    });
    format!("Mutations:\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mutation_reads_back_as_it_was_written() {
        for text in ["no-cookie", "slow-start=5"] {
            assert_eq!(text.parse::<Chosen>().expect("a mutation").to_string(), text);
        }
        assert!("no-such-thing".parse::<Chosen>().is_err());
    }

    #[test]
    fn a_build_carries_the_faults_of_its_mutations_only() {
        let build = Mutations::new(&["no-cookie".parse().expect("a mutation")]);
        assert!(build.carries(Fault::NoCookie) && !build.carries(Fault::Hang));
    }
}
