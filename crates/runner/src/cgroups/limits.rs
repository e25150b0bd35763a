// SPDX-License-Identifier: Apache-2.0
//! What a container may use, and how the kernel's files say it.

use k8s_openapi::api::core::v1::Container;

use super::find::{Controller, Version};
use crate::content::FieldError;
use crate::downward::quantity_of;

/// Most processes and threads of a Pod. A program that makes more gets EAGAIN; the machine has room for others.
pub const MAX_PROCESSES: u32 = 4096;
/// Period in which a quota of processor time is given anew, in microseconds: that of Kubernetes.
const PERIOD: u64 = 100_000;
/// Least quota that the kernel takes, in microseconds.
const MIN_QUOTA: u64 = 1_000;

/// The limits of one container. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Thousandths of a processor.
    pub cpu: Option<u64>,
    /// Processes and threads of the whole Pod.
    pub processes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { memory: None, cpu: None, processes: MAX_PROCESSES }
    }
}

impl Limits {
    /// `resources.limits`; a limit of 0 is none, as in Kubernetes.
    pub(crate) fn of(container: &Container) -> Result<Self, FieldError> {
        let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
        let value = |name: &str, factor: f64| {
            let Some(quantity) = limits.and_then(|limits| limits.get(name)) else { return Ok(None) };
            let value = (quantity_of(&quantity.0)? * factor).ceil();
            if !(0.0..=i64::MAX as f64).contains(&value) {
                return Err(FieldError::OutOfRange { name: name.to_owned(), quantity: quantity.0.clone() });
            }
            Ok((value > 0.0).then_some(value as u64))
        };
        let (memory, cpu) = (value("memory", 1.0)?, value("cpu", 1000.0)?);
        Ok(Self { memory, cpu, ..Self::default() })
    }

    /// Whether there is one that this controller holds.
    pub(super) fn asks(&self, controller: Controller) -> bool {
        match controller {
            Controller::Memory => self.memory.is_some(),
            Controller::Cpu => self.cpu.is_some(),
            Controller::Pids => false,
        }
    }
}

/// A file of a group and what is written into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Setting {
    pub file: &'static str,
    pub value: String,
    /// A kernel without this file, or a group above that has less anyway, is no reason not to start.
    pub optional: bool,
}

/// What is written into the group of a container, in this order.
pub(super) fn settings(version: Version, controller: Controller, limits: &Limits) -> Vec<Setting> {
    let must = |file, value: String| Setting { file, value, optional: false };
    let may = |file, value: String| Setting { file, value, optional: true };
    let quota = |cpu: u64| cpu.saturating_mul(PERIOD / 1000).max(MIN_QUOTA).to_string();
    match (version, controller, limits.memory, limits.cpu) {
        // Memory and swap together have the same limit: nothing is swapped out to stay below.
        (Version::One, Controller::Memory, Some(bytes), _) => vec![
            must("memory.limit_in_bytes", bytes.to_string()),
            may("memory.memsw.limit_in_bytes", bytes.to_string()),
        ],
        (Version::Two, Controller::Memory, Some(bytes), _) => vec![
            must("memory.max", bytes.to_string()),
            may("memory.swap.max", "0".to_owned()),
            may("memory.oom.group", "1".to_owned()),
        ],
        (Version::One, Controller::Cpu, _, Some(cpu)) => {
            vec![must("cpu.cfs_period_us", PERIOD.to_string()), may("cpu.cfs_quota_us", quota(cpu))]
        }
        (Version::Two, Controller::Cpu, _, Some(cpu)) => {
            vec![must("cpu.max", format!("{} {PERIOD}", quota(cpu)))]
        }
        _ => Vec::new(),
    }
}

/// The file of a group in which the kernel counts `oom_kill`.
pub(super) fn oom_file(version: Version) -> &'static str {
    match version {
        Version::One => "memory.oom_control",
        Version::Two => "memory.events",
    }
}

/// How often the kernel has killed a process of a group for its memory.
pub(super) fn oom_kills(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_are_those_of_the_manifest() {
        let of = |limits: serde_json::Value| {
            let container = json!({"name": "c", "resources": {"limits": limits, "requests": {"cpu": "9"}}});
            Limits::of(&serde_json::from_value(container).unwrap())
        };
        assert_eq!(of(json!({})), Ok(Limits::default()));
        assert_eq!(of(json!({"memory": "64Mi"})), Ok(Limits { memory: Some(64 << 20), ..Limits::default() }));
        assert_eq!(of(json!({"cpu": "1500m"})), Ok(Limits { cpu: Some(1500), ..Limits::default() }));
        assert_eq!(
            of(json!({"cpu": "0.0001", "memory": "0"})),
            Ok(Limits { cpu: Some(1), ..Limits::default() })
        );
        assert!(of(json!({"memory": "-1"})).is_err());
        assert!(of(json!({"memory": "much"})).is_err());
    }

    #[test]
    fn settings_are_those_of_the_kernels_version() {
        let limits = Limits { memory: Some(4096), cpu: Some(250), ..Limits::default() };
        let text = |version, controller, limits: &Limits| {
            let all = settings(version, controller, limits);
            all.iter().map(|s| format!("{}={}", s.file, s.value)).collect::<Vec<_>>().join(", ")
        };
        for (version, controller, expected) in [
            (
                Version::One,
                Controller::Memory,
                "memory.limit_in_bytes=4096, memory.memsw.limit_in_bytes=4096",
            ),
            (Version::Two, Controller::Memory, "memory.max=4096, memory.swap.max=0, memory.oom.group=1"),
            (Version::One, Controller::Cpu, "cpu.cfs_period_us=100000, cpu.cfs_quota_us=25000"),
            (Version::Two, Controller::Cpu, "cpu.max=25000 100000"),
            (Version::Two, Controller::Pids, ""),
        ] {
            assert_eq!(text(version, controller, &limits), expected);
            assert_eq!(text(version, controller, &Limits::default()), "");
        }
        let little = Limits { cpu: Some(1), ..Limits::default() };
        assert_eq!(text(Version::Two, Controller::Cpu, &little), "cpu.max=1000 100000");
    }

    #[test]
    fn kills_are_counted_as_either_version_writes_them() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 1\n"), 1);
        assert_eq!(oom_kills("under_oom 0\n"), 0);
    }
}
