//! Time as t3 writes it: milliseconds in tokens, ISO-8601 text in the database, an HTTP date in cookies.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub const MINUTE: Duration = Duration::from_secs(60);
pub const DAY: Duration = Duration::from_secs(86_400);

/// Milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Millis(pub u64);

impl Millis {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn plus(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// `2026-11-22T06:10:23.456Z`
    pub fn iso(self) -> String {
        humantime::format_rfc3339_millis(self.system_time()).to_string()
    }

    pub fn from_iso(text: &str) -> Option<Self> {
        let since = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_millis()).ok().map(Self)
    }

    /// `06:10:23.456`, as log lines begin.
    pub fn time_of_day(self) -> String {
        self.iso()[11..23].to_owned()
    }

    /// `Tue, 22 Dec 2026 06:10:23 GMT`
    pub fn http_date(self) -> String {
        const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let iso = self.iso();
        let weekday = DAYS[usize::try_from(self.0 / 86_400_000 % 7).unwrap_or(0)];
        let month = iso[5..7].parse::<usize>().map_or("Jan", |month| MONTHS[month.clamp(1, 12) - 1]);
        format!("{weekday}, {} {month} {} {} GMT", &iso[8..10], &iso[..4], &iso[11..19])
    }

    // A date far beyond any calendar is cut at the year 9999, the last that the formatter knows.
    fn system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.0.min(253_402_300_799_999))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_moment_is_written_in_three_ways() {
        let moment = Millis(1_797_919_823_456);
        assert_eq!(moment.iso(), "2026-12-22T06:10:23.456Z");
        assert_eq!(moment.http_date(), "Tue, 22 Dec 2026 06:10:23 GMT");
        assert_eq!(moment.time_of_day(), "06:10:23.456");
        assert_eq!(Millis::from_iso("2026-12-22T06:10:23.456Z"), Some(moment));
    }
}
