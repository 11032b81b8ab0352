//! How long things take. Everything is at once unless asked for; `--realistic` asks for what was measured (CONTRACT §9).

use std::time::Duration;

use super::release::Release;

/// Delays, each a duration such as `250ms` or `20s`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Timing {
    /// Take the times measured on the real program for whatever is not given
    #[arg(long)]
    realistic: bool,
    /// From the start of the server to the listening port
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    boot: Option<Duration>,
    /// From the listening port to the first answer; connections accepted in between are never answered
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    early: Option<Duration>,
    /// How long a command takes
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    command: Option<Duration>,
    /// From SIGTERM to the end while a WebSocket is open and its client answers the close
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_open: Option<Duration>,
    /// From SIGTERM to the end while a WebSocket is open and its client is silent
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_silent: Option<Duration>,
    /// From SIGTERM to the end while a connection of the start-up is stuck
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_stuck: Option<Duration>,
}

/// The delays of one release, settled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    pub boot: Duration,
    pub early: Duration,
    pub command: Duration,
    pub stop_open: Duration,
    pub stop_silent: Duration,
    pub stop_stuck: Duration,
}

impl Timing {
    pub fn delays(&self, release: &Release) -> Delays {
        let measured = if self.realistic { measured(release) } else { Delays::default() };
        Delays {
            boot: self.boot.unwrap_or(measured.boot),
            early: self.early.unwrap_or(measured.early),
            command: self.command.unwrap_or(measured.command),
            stop_open: self.stop_open.unwrap_or(measured.stop_open),
            stop_silent: self.stop_silent.unwrap_or(measured.stop_silent),
            stop_stuck: self.stop_stuck.unwrap_or(measured.stop_stuck),
        }
    }

    /// The arguments that say the same again, for an installed copy.
    pub fn arguments(&self) -> Vec<String> {
        let given = [
            ("--boot", self.boot),
            ("--early", self.early),
            ("--command", self.command),
            ("--stop-open", self.stop_open),
            ("--stop-silent", self.stop_silent),
            ("--stop-stuck", self.stop_stuck),
        ];
        let given = given.into_iter().filter_map(|(name, time)| {
            time.map(|time| {
                format!("{name}={}", humantime::format_duration(time).to_string().replace(' ', ""))
            })
        });
        self.realistic.then(|| "--realistic".to_owned()).into_iter().chain(given).collect()
    }
}

fn measured(release: &Release) -> Delays {
    let ms = Duration::from_millis;
    let (boot, command) = match () {
        () if release.since(33) => (950, 950),
        () if release.since(26) => (880, 800),
        () => (680, 750),
    };
    let (stop_open, stop_silent, stop_stuck) =
        if release.since(28) { (120, 30_000, 70) } else { (20_100, 50_000, 20_100) };
    Delays {
        boot: ms(boot),
        early: ms(270),
        command: ms(command),
        stop_open: ms(stop_open),
        stop_silent: ms(stop_silent),
        stop_stuck: ms(stop_stuck),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_takes_time_unless_asked_for() {
        let release = "0.0.24".parse().expect("a version");
        assert_eq!(Timing::default().delays(&release).stop_silent, Duration::ZERO);
        let realistic = Timing { realistic: true, early: Some(Duration::ZERO), ..Timing::default() };
        assert_eq!(realistic.delays(&release).stop_silent, Duration::from_secs(50));
        assert_eq!(realistic.delays(&release).early, Duration::ZERO);
    }

    #[test]
    fn an_installed_copy_is_given_the_same_times() {
        let timing = Timing { realistic: true, boot: Some(Duration::from_millis(1500)), ..Timing::default() };
        assert_eq!(timing.arguments(), ["--realistic", "--boot=1s500ms"]);
    }
}
