// SPDX-License-Identifier: Apache-2.0
//! Limits of memory, processes and processor time: a cgroup for each container, below a group `meltemi` of our own.
//!
//! The groups are `meltemi/MESH/NODE/POD-UID/CONTAINER` in every hierarchy that has a controller for it: those of cgroups
//! v1, or the one of v2 below the nearest group that passes its controllers on. Where there is none, nothing is in force.

mod find;
mod limits;
mod record;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};

pub use self::find::Controller;
use self::find::{Place, Version};
pub use self::limits::{Limits, MAX_PROCESSES};
use self::limits::{Setting, oom_file, oom_kills, settings};
pub(crate) use self::record::mesh_group;
pub use self::record::remove_mesh;
use self::record::remove_tree;

/// The group of all meshes of a hierarchy.
const GROUP: &str = "meltemi";
/// How long groups of an earlier life are waited for: their processes ended with it, or are about to.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// The groups of a node.
#[derive(Debug, Default)]
pub struct Cgroups {
    places: Vec<Place>,
    /// The node's group below a place: those on the way to it pass controllers on.
    below: [String; 3],
}

/// What could be in force in a node that this process starts: nothing is made.
pub fn possible() -> Vec<Controller> {
    let writable = |place: &Place| access(&place.path, AccessFlags::W_OK).is_ok();
    own_places().into_iter().filter(writable).flat_map(|place| place.controllers).collect()
}

fn own_places() -> Vec<Place> {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    find::places(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
}

impl Cgroups {
    /// Finds where this process may make groups, removes those that an earlier life of the node left, and makes the
    /// node's. `record` is the file in which they are written down.
    pub fn open(mesh: &str, node: &str, record: &Path) -> Self {
        let places = own_places();
        let groups: Vec<PathBuf> = places.iter().map(|place| place.path.join(GROUP).join(mesh)).collect();
        let left = record::sweep(record, node, &groups, SWEEP_LIMIT);
        for group in &left {
            tracing::warn!(group = %group.display(), "a cgroup of an earlier life has processes and stays");
        }
        let known: Vec<PathBuf> =
            groups.iter().chain(left.iter().filter(|g| !groups.contains(g))).cloned().collect();
        // Before the first is made: what is not written down is not removed.
        if let Err(error) = record::write(record, &known) {
            tracing::warn!(%error, record = %record.display(), "no limits: cgroups could not be written down");
            return Self::default();
        }
        let made = Self::make(places, mesh, node);
        let missing: Vec<&str> =
            Controller::ALL.into_iter().filter(|c| !made.holds(*c)).map(Controller::name).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            tracing::warn!(missing, "not every limit of Pods is in force: cgroups of these cannot be made");
        }
        made
    }

    /// Makes the node's group at each place; a place where it cannot be made is none.
    fn make(places: Vec<Place>, mesh: &str, node: &str) -> Self {
        let below = [GROUP, mesh, node].map(str::to_owned);
        let works = |place: &Place| match make_groups(place, below.iter().map(String::as_str)) {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, group = %place.path.display(), "no cgroups can be made here");
                false
            }
        };
        Self { places: places.into_iter().filter(works).collect(), below }
    }

    /// Whether limits of this kind are in force.
    pub fn holds(&self, controller: Controller) -> bool {
        self.places.iter().any(|place| place.controllers.contains(&controller))
    }

    /// Makes the groups of a container that is about to start.
    ///
    /// # Errors
    /// The kernel refuses a group or a limit; the message names the file.
    pub fn container(&self, pod: &str, container: &str, limits: &Limits) -> io::Result<Group> {
        let mut group = Group::default();
        for place in self.places.iter().filter(|place| is_needed(place, limits)) {
            let way = self.below.iter().map(String::as_str).chain([pod]);
            let of_pod = make_groups(place, way)?;
            if place.controllers.contains(&Controller::Pids) {
                let value = limits.processes.to_string();
                apply(&of_pod, &Setting { file: "pids.max", value, optional: false })?;
            }
            let folder = of_pod.join(container);
            make_folder(&folder)?;
            group.folders.push(folder.clone());
            for controller in &place.controllers {
                for setting in settings(place.version, *controller, limits) {
                    apply(&folder, &setting)?;
                }
            }
            if place.controllers.contains(&Controller::Memory) {
                let file = folder.join(oom_file(place.version));
                // A group whose last processes had not ended is used again, with what it has counted.
                group.oom = Some((oom_kills(&fs::read_to_string(&file).unwrap_or_default()), file));
            }
            let list = folder.join("cgroup.procs");
            let opened = File::options().write(true).open(&list);
            group.lists.push(opened.map_err(|e| at(&list, e))?.into());
        }
        Ok(group)
    }

    /// Removes all groups of a Pod that has ended. Blocks while the last of its processes end.
    pub fn remove_pod(&self, pod: &str) {
        for place in &self.places {
            let group = self.below.iter().fold(place.path.clone(), |path, part| path.join(part)).join(pod);
            if !remove_tree(&group, SWEEP_LIMIT) {
                tracing::warn!(group = %group.display(), "a Pod's cgroup has processes and stays");
            }
        }
    }
}

/// The groups of one container.
#[derive(Debug, Default)]
pub struct Group {
    folders: Vec<PathBuf>,
    lists: Vec<OwnedFd>,
    /// Kills for memory before its start, and where they are counted.
    oom: Option<(u64, PathBuf)>,
}

impl Group {
    /// What a process joins the groups by.
    ///
    /// # Errors
    /// No descriptors left.
    pub(crate) fn lists(&self) -> io::Result<Vec<OwnedFd>> {
        self.lists.iter().map(OwnedFd::try_clone).collect()
    }

    /// Whether the kernel has killed a process of it because its memory was used up.
    pub fn is_oom_killed(&self) -> bool {
        let Some((before, file)) = &self.oom else { return false };
        oom_kills(&fs::read_to_string(file).unwrap_or_default()) > *before
    }

    /// Removes the groups after the container's end. One whose last processes are still ending stays for
    /// [`Cgroups::remove_pod`].
    pub fn remove(&self) {
        for folder in &self.folders {
            let _ = remove_tree(folder, Duration::from_millis(100));
        }
    }
}

/// In v1 a container is in a group of a hierarchy only where it has a limit: groups share processor time by weight, and
/// what asks for no limit is not to get less of it.
fn is_needed(place: &Place, limits: &Limits) -> bool {
    let needed = |c: &Controller| *c == Controller::Pids || limits.asks(*c);
    place.version == Version::Two || place.controllers.iter().any(needed)
}

/// Makes a group and those on the way to it, which pass the place's controllers on; the innermost.
fn make_groups<'a>(place: &Place, way: impl Iterator<Item = &'a str>) -> io::Result<PathBuf> {
    let mut group = place.path.clone();
    for name in way {
        group.push(name);
        make_folder(&group)?;
        if place.version == Version::Two {
            let value =
                place.controllers.iter().map(|c| format!("+{}", c.name())).collect::<Vec<_>>().join(" ");
            apply(&group, &Setting { file: "cgroup.subtree_control", value, optional: false })?;
        }
    }
    Ok(group)
}

fn make_folder(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at(folder, error)),
        _ => Ok(()),
    }
}

fn apply(group: &Path, setting: &Setting) -> io::Result<()> {
    use std::io::Write;
    let file = group.join(setting.file);
    let written =
        File::options().write(true).open(&file).and_then(|mut f| f.write_all(setting.value.as_bytes()));
    match written {
        Err(error) if setting.optional => {
            tracing::debug!(%error, file = %file.display(), "not written");
            Ok(())
        }
        other => other.map_err(|e| at(&file, e)),
    }
}

fn at(path: &Path, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("cgroup {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder of files as the kernel makes them with a group.
    fn group(path: &Path) {
        fs::create_dir_all(path).unwrap();
        for file in
            ["cgroup.procs", "cgroup.subtree_control", "memory.max", "memory.events", "pids.max", "cpu.max"]
        {
            fs::write(path.join(file), "").unwrap();
        }
    }

    #[test]
    fn each_group_on_the_way_passes_the_controllers_on_and_the_last_has_the_limits() {
        let folder = tempfile::tempdir().unwrap();
        let top = folder.path().to_owned();
        let way =
            ["meltemi", "meltemi/m", "meltemi/m/node-1", "meltemi/m/node-1/uid", "meltemi/m/node-1/uid/c"];
        for path in way {
            group(&top.join(path));
        }
        let place = Place { version: Version::Two, controllers: Controller::ALL.into(), path: top.clone() };
        let cgroups = Cgroups::make(vec![place], "m", "node-1");
        assert!(Controller::ALL.into_iter().all(|c| cgroups.holds(c)));
        let limits = Limits { memory: Some(1 << 20), cpu: Some(500), ..Limits::default() };
        let made = cgroups.container("uid", "c", &limits).unwrap();
        let read = |path: &str| fs::read_to_string(top.join(path)).unwrap();
        for path in &way[..4] {
            assert_eq!(read(&format!("{path}/cgroup.subtree_control")), "+memory +pids +cpu", "{path}");
        }
        // A group with processes passes nothing on.
        assert_eq!(read("meltemi/m/node-1/uid/c/cgroup.subtree_control"), "");
        assert_eq!(read("meltemi/m/node-1/uid/pids.max"), "4096");
        assert_eq!(read("meltemi/m/node-1/uid/c/memory.max"), "1048576");
        assert_eq!(read("meltemi/m/node-1/uid/c/cpu.max"), "50000 100000");
        assert_eq!(made.lists().unwrap().len(), 1);
        assert!(!made.is_oom_killed());
        fs::write(top.join("meltemi/m/node-1/uid/c/memory.events"), "oom 1\noom_kill 1\n").unwrap();
        assert!(made.is_oom_killed());
        // It is counted from the start on.
        assert!(!cgroups.container("uid", "c", &limits).unwrap().is_oom_killed());
    }

    #[test]
    fn where_no_group_can_be_made_nothing_is_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, plain) = (folder.path().join("missing"), folder.path().join("plain"));
        fs::create_dir(&plain).unwrap();
        let first = Place { version: Version::One, controllers: vec![Controller::Memory], path: missing };
        // Not a group: no file takes what is passed on.
        let second = Place { version: Version::Two, controllers: vec![Controller::Pids], path: plain };
        let cgroups = Cgroups::make(vec![first, second], "m", "n");
        assert!(Controller::ALL.into_iter().all(|c| !cgroups.holds(c)));
        let limits = Limits { memory: Some(1), ..Limits::default() };
        assert!(cgroups.container("uid", "c", &limits).unwrap().lists().unwrap().is_empty());
    }

    #[test]
    fn a_limit_that_the_kernel_does_not_take_is_an_error_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place {
            version: Version::One,
            controllers: vec![Controller::Memory],
            path: folder.path().into(),
        };
        let cgroups = Cgroups::make(vec![place], "m", "n");
        let limits = Limits { memory: Some(1 << 20), ..Limits::default() };
        let error = cgroups.container("uid", "c", &limits).unwrap_err().to_string();
        assert!(error.contains("uid/c/memory.limit_in_bytes"), "{error}");
        // Without a limit there is no group in this version.
        assert!(cgroups.container("uid", "c", &Limits::default()).unwrap().lists().unwrap().is_empty());
    }
}
