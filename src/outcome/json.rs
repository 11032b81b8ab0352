//! How outcomes are written as JSON: durations as seconds, times as RFC 3339 in UTC with milliseconds, and of a run also
//! what follows from its steps, so that a reader need not know the rule by which one step decides.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};

use super::{Ended, Facts, Kind, Run, Step, StepResult, Trigger};

impl Serialize for Run {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Written<'a> {
            user: &'a str,
            kind: Kind,
            trigger: Trigger,
            #[serde(with = "utc")]
            started: SystemTime,
            #[serde(rename = "duration_seconds", with = "seconds")]
            duration: Duration,
            outcome: Ended,
            #[serde(skip_serializing_if = "Option::is_none")]
            reason: Option<&'static str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            step: Option<Step>,
            #[serde(skip_serializing_if = "Option::is_none")]
            detail: Option<&'a str>,
            steps: &'a [StepResult],
            facts: &'a Facts,
            trace_id: &'a str,
        }
        let decided_by = self.decided_by();
        Written {
            user: &self.user,
            kind: self.kind,
            trigger: self.trigger,
            started: self.started,
            duration: self.duration,
            outcome: self.outcome().ended(),
            reason: self.outcome().reason(),
            step: decided_by.map(|step| step.step),
            detail: decided_by.and_then(|step| step.detail.as_deref()),
            steps: &self.steps,
            facts: &self.facts,
            trace_id: &self.trace_id,
        }
        .serialize(serializer)
    }
}

/// A duration as seconds, `#[serde(with = "seconds")]`.
pub mod seconds {
    use std::time::Duration;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A point in time as RFC 3339 in UTC with milliseconds, `#[serde(with = "utc")]`.
pub mod utc {
    use std::fmt::Write;
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        // The formatter panics on a time before 1970 and `to_string` on one after 9999.
        let mut text = String::new();
        if *time < SystemTime::UNIX_EPOCH
            || write!(text, "{}", humantime::format_rfc3339_millis(*time)).is_err()
        {
            return Err(ser::Error::custom("a time outside the years 1970 to 9999 cannot be written"));
        }
        serializer.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// The CPU time of each t3 command as `[{"verb": …, "seconds": …}]`: a list, because a retried verb comes twice.
pub(super) mod cpu {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::outcome::Verb;

    #[derive(Serialize, Deserialize)]
    struct Cpu {
        verb: Verb,
        #[serde(with = "super::seconds")]
        seconds: Duration,
    }

    pub fn serialize<S: Serializer>(cpu: &[(Verb, Duration)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(cpu.iter().map(|&(verb, seconds)| Cpu { verb, seconds }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Verb, Duration)>, D::Error> {
        let list = Vec::<Cpu>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|cpu| (cpu.verb, cpu.seconds)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::{Endpoint, Outcome, Reason, Skip, Verb};

    fn run() -> Run {
        let step = |step, outcome, ms, detail: Option<&str>| StepResult {
            step,
            outcome,
            duration: Duration::from_millis(ms),
            detail: detail.map(str::to_owned),
        };
        Run {
            user: "ann".to_owned(),
            kind: Kind::Handshake,
            trigger: Trigger::Demand,
            started: SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_225_600_123),
            duration: Duration::from_millis(1250),
            steps: vec![
                step(Step::Mint, Outcome::Ok, 2, None),
                step(Step::Exchange, Outcome::Failed(Reason::AuthStore), 7, Some("answered 500 twice")),
                step(Step::Session, Outcome::Skipped(Skip::EarlierStep), 0, None),
            ],
            facts: Facts {
                version: Some("0.0.24".to_owned()),
                endpoint: Some(Endpoint::Bootstrap),
                cli_cpu: vec![(Verb::SessionIssue, Duration::from_millis(1180))],
                ..Facts::default()
            },
            trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        }
    }

    #[test]
    fn a_run_is_written_with_what_follows_from_its_steps() {
        insta::assert_json_snapshot!(run(), @r#"
        {
          "user": "ann",
          "kind": "handshake",
          "trigger": "demand",
          "started": "2026-01-01T00:00:00.123Z",
          "duration_seconds": 1.25,
          "outcome": "failed",
          "reason": "auth_store",
          "step": "exchange",
          "detail": "answered 500 twice",
          "steps": [
            {
              "step": "mint",
              "outcome": "ok",
              "duration_seconds": 0.002
            },
            {
              "step": "exchange",
              "outcome": "failed",
              "reason": "auth_store",
              "duration_seconds": 0.007,
              "detail": "answered 500 twice"
            },
            {
              "step": "session",
              "outcome": "skipped",
              "reason": "earlier_step",
              "duration_seconds": 0.0
            }
          ],
          "facts": {
            "version": "0.0.24",
            "endpoint": "bootstrap",
            "cli_cpu_seconds": [
              {
                "verb": "session_issue",
                "seconds": 1.18
              }
            ]
          },
          "trace_id": "0af7651916cd43dd8448eb211c80319c"
        }
        "#);
    }

    #[test]
    fn a_run_reads_back_as_it_was_written() {
        let text = serde_json::to_string(&run()).expect("written");
        assert_eq!(serde_json::from_str::<Run>(&text).expect("read"), run());
    }

    #[test]
    fn the_words_of_an_outcome_are_those_of_how_it_ended() {
        for outcome in [Outcome::Ok, Outcome::Failed(Reason::Locked), Outcome::Skipped(Skip::Starting)] {
            let json = serde_json::to_value(outcome).expect("written");
            assert_eq!(json["outcome"], outcome.ended().as_str());
            assert_eq!(json["reason"].as_str(), outcome.reason());
        }
    }

    #[test]
    fn a_time_before_1970_and_a_negative_duration_are_errors_and_no_panic() {
        let early = Run { started: SystemTime::UNIX_EPOCH - Duration::from_secs(1), ..run() };
        assert!(serde_json::to_string(&early).is_err());
        let negative = serde_json::to_string(&run()).expect("written").replace("1.25", "-1.25");
        assert!(serde_json::from_str::<Run>(&negative).is_err());
    }
}
