// SPDX-License-Identifier: Apache-2.0
//! Where groups can be made: the hierarchies of cgroups v1 and v2, and this process's place in them.

use std::fs;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// What bounds something of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Controller {
    /// Memory.
    Memory,
    /// Processes and threads.
    Pids,
    /// Processor time.
    Cpu,
}

impl Controller {
    /// All that the runner uses.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

/// The two interfaces of the kernel; their files have different names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    One,
    Two,
}

/// A group of the machine below which groups of ours can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub version: Version,
    pub controllers: Vec<Controller>,
    pub path: PathBuf,
}

/// The places for a process with this `/proc/PID/cgroup` and `/proc/PID/mountinfo`. Whether a group can really be made
/// there is not known before one is.
pub(super) fn places(membership: &str, mounts: &str) -> Vec<Place> {
    let first = |controller: Controller| {
        let name = controller.name();
        let within = membership.lines().find_map(|line| {
            let (list, path) = line.split_once(':')?.1.split_once(':')?;
            list.split(',').any(|word| word == name).then_some(path)
        })?;
        let mount = find_mount(mounts, "cgroup", Some(name))?;
        Some(Place { version: Version::One, controllers: vec![controller], path: locate(&mount, within)?.1 })
    };
    let mut found: Vec<Place> = Controller::ALL.into_iter().filter_map(first).collect();
    let taken: Vec<Controller> = found.iter().flat_map(|place| place.controllers.clone()).collect();
    found.extend(unified(membership, mounts, &taken));
    found
}

/// The nearest group above this process (or its own) that passes on the most of the controllers, in cgroups v2. What a
/// group passes on is never changed: its other children would get controllers that they do not expect.
fn unified(membership: &str, mounts: &str, taken: &[Controller]) -> Option<Place> {
    let within = membership.lines().find_map(|line| line.strip_prefix("0::"))?;
    let (top, own) = locate(&find_mount(mounts, "cgroup2", None)?, within)?;
    let mut best: Option<Place> = None;
    for group in own.ancestors().take_while(|group| group.starts_with(&top)) {
        let passed = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
        let passes = |c: &Controller| !taken.contains(c) && passed.split_whitespace().any(|w| w == c.name());
        let controllers: Vec<Controller> = Controller::ALL.into_iter().filter(passes).collect();
        let more = controllers.len() > best.as_ref().map_or(0, |best| best.controllers.len());
        // Who may move a process between two groups may write the list of the group that holds both.
        let writable = |path: &Path| access(path, AccessFlags::W_OK).is_ok();
        if more && writable(group) && writable(&group.join("cgroup.procs")) {
            best = Some(Place { version: Version::Two, controllers, path: group.to_owned() });
        }
    }
    best
}

/// A mounted hierarchy: the group that is shown at the mount point, and the mount point.
struct Mount<'a> {
    root: &'a str,
    point: &'a str,
}

fn find_mount<'a>(mounts: &'a str, kind: &str, controller: Option<&str>) -> Option<Mount<'a>> {
    mounts.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut rest = rest.split(' ');
        let (found, options) = (rest.next()?, rest.nth(1)?);
        let has = controller.is_none_or(|name| options.split(',').any(|option| option == name));
        (found == kind && has).then_some(Mount { root, point })
    })
}

/// The folders of the topmost group that can be seen and of the group `within`, which may be outside of what is mounted.
fn locate(mount: &Mount<'_>, within: &str) -> Option<(PathBuf, PathBuf)> {
    let below = Path::new(within).strip_prefix(mount.root).ok()?;
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    let top = PathBuf::from(mount.point);
    plain.then(|| (top.clone(), top.join(below).components().collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(version: Version, controllers: &[Controller], path: &str) -> Place {
        Place { version, controllers: controllers.into(), path: path.into() }
    }

    #[test]
    fn hierarchies_of_the_first_version_have_a_place_each() {
        let mounts = "30 1 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      31 30 0:2 / /c/cpu rw,relatime shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
                      32 30 0:3 /docker/a /c/memory rw - cgroup cgroup rw,memory\n\
                      33 30 0:4 / /c/pids rw - cgroup cgroup rw,pids\n";
        let own = "8:pids:/\n4:memory:/docker/a/b\n1:cpu,cpuacct:/x\n0::/\n";
        let expected = [
            place(Version::One, &[Controller::Memory], "/c/memory/b"),
            place(Version::One, &[Controller::Pids], "/c/pids"),
            place(Version::One, &[Controller::Cpu], "/c/cpu/x"),
        ];
        assert_eq!(places(own, mounts), expected);
        // A group that is not below what is mounted cannot be named.
        assert_eq!(places("4:memory:/other", mounts), []);
        assert_eq!(places("4:memory:/docker/a/../b", mounts), []);
        assert_eq!(places(own, ""), []);
    }

    #[test]
    fn in_the_second_version_the_nearest_group_that_passes_on_most_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path();
        let group = |path: &str, passed: &str| {
            let group = top.join(path);
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join("cgroup.subtree_control"), passed).unwrap();
            fs::write(group.join("cgroup.procs"), "").unwrap();
        };
        group("", "cpu memory pids\n");
        group("user", "memory pids cpuset\n");
        group("user/app", "memory pids\n");
        group("user/app/own", "");
        let mounts = format!("31 30 0:2 / {} rw - cgroup2 cgroup2 rw\n", top.display());
        let found = |within: &str| places(within, &mounts);
        let at = |path: &str, controllers: &[Controller]| {
            vec![place(Version::Two, controllers, top.join(path).to_str().unwrap())]
        };
        let all = Controller::ALL;
        assert_eq!(found("0::/user/app/own\n"), at("", &all));
        group("", "");
        assert_eq!(found("0::/user/app/own\n"), at("user/app", &all[..2]));
        assert_eq!(found("0::/user\n"), at("user", &all[..2]));
        assert_eq!(found("0::/../user\n"), []);
        fs::remove_file(top.join("user/app/cgroup.procs")).unwrap();
        assert_eq!(found("0::/user/app/own\n"), at("user", &all[..2]));
        group("user", "io");
        assert_eq!(found("0::/user/app/own\n"), []);
    }
}
