//! What each user's database says of itself, as the state tier read it last.

use prometheus_client::metrics::gauge::Gauge;

use super::book::metrics;
use super::labels::{NoLabels, labels};
use super::series::{ByUser, Reading};
use crate::outcome::{RowState, SessionKind, StateFacts, StateFile};

labels! {
    pub struct OfRowState {
        /// whether the row still opens something
        pub state: RowState,
    }
}

labels! {
    pub struct OfMaker {
        /// who made the session, by its label
        pub maker: SessionKind,
    }
}

labels! {
    pub struct OfFile {
        /// the file of the database
        pub file: StateFile,
    }
}

metrics! {
    pub struct State {
        /// The highest migration that the database has
        level: ByUser<NoLabels, Gauge> = "t3_schema_level",
        /// The level that the running version brings; absent where version or level is not known
        expected: ByUser<NoLabels, Reading> = "t3_schema_expected_level",
        /// Migrations that the database has beyond those of the running version; 0 where it fits, absent where that is
        /// not known
        ahead: ByUser<NoLabels, Reading> = "t3_schema_ahead",
        /// Migrations of the running version that the database lacks; 0 where it fits, absent where that is not known
        behind: ByUser<NoLabels, Reading> = "t3_schema_behind",
        /// Whether stopping the instance now would cut somebody off (1); turns that a crash left behind do not count
        busy: ByUser<NoLabels, Gauge> = "t3_instance_busy",
        /// Rows of the table of sessions, which t3 never prunes
        sessions: ByUser<OfRowState, Gauge> = "t3_auth_sessions",
        /// Rows of the table of pairing links, which t3 never prunes
        links: ByUser<OfRowState, Gauge> = "t3_auth_pairing_links",
        /// Sessions that can be used, by who made them
        made_by: ByUser<OfMaker, Gauge> = "t3_auth_live_sessions",
        /// Size of the database's files
        size: ByUser<OfFile, Gauge> = "t3_state_size_bytes",
        /// Events in the history, which only ever grow: a decrease is a loss
        events: ByUser<NoLabels, Gauge> = "t3_history_events",
        /// Messages in the history; setting a thread back takes some away, by new events
        messages: ByUser<NoLabels, Gauge> = "t3_history_messages",
    }
}

impl State {
    pub(super) fn learn(&self, user: &str, facts: &StateFacts) {
        let set = |series: &ByUser<NoLabels, Gauge>, value: u64| {
            series.with(user, NoLabels, |gauge| {
                gauge.set(gauge_of(value));
            });
        };
        set(&self.level, facts.level.into());
        set(&self.busy, facts.busy.into());
        set(&self.events, facts.events);
        set(&self.messages, facts.messages);
        let beyond = |more: u32, less: Option<u32>| less.map(|less| more.saturating_sub(less));
        for (series, value) in [
            (&self.expected, facts.expected_level),
            (&self.ahead, beyond(facts.level, facts.expected_level)),
            (&self.behind, facts.expected_level.map(|expected| expected.saturating_sub(facts.level))),
        ] {
            series.with(user, NoLabels, |reading| reading.set(value.map_or(f64::NAN, f64::from)));
        }
        let live: u64 = facts.sessions.iter().map(|(_, live)| live).sum();
        for (series, live, rows) in
            [(&self.sessions, live, facts.session_rows), (&self.links, facts.links, facts.link_rows)]
        {
            for (state, value) in [(RowState::Live, live), (RowState::Ended, rows.saturating_sub(live))] {
                series.with(user, OfRowState { state }, |gauge| {
                    gauge.set(gauge_of(value));
                });
            }
        }
        for &(maker, live) in &facts.sessions {
            self.made_by.with(user, OfMaker { maker }, |gauge| {
                gauge.set(gauge_of(live));
            });
        }
        for (file, bytes) in [(StateFile::Main, facts.main_bytes), (StateFile::Wal, facts.wal_bytes)] {
            self.size.with(user, OfFile { file }, |gauge| {
                gauge.set(gauge_of(bytes));
            });
        }
    }
}

fn gauge_of(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
