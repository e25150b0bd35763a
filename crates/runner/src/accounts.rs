// SPDX-License-Identifier: Apache-2.0
//! The users and groups of the machine's programs: those of its `/etc/passwd` and `/etc/group` that belong to the
//! system. People are none of a Pod's business.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use meltemi_linux::beneath::{self, Links};

/// Ids of Debian's system users end before this one.
const END_OF_SYSTEM: u32 = 1_000;
const NOBODY: u32 = 65_534;
/// How much of a file of an image is read.
const MAX_FILE: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
struct User {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
    shell: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The system's users and groups, `root` and `nobody` always among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accounts {
    users: Vec<User>,
    groups: Vec<Group>,
}

impl Accounts {
    /// Reads a machine's files in `etc`; those that are not there hold nobody.
    pub(crate) fn read(etc: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(etc.join(name)).unwrap_or_default();
        Self::parse(&text("passwd"), &text("group"))
    }

    /// Reads those of an image, all of them; `root` is its root.
    pub(crate) fn of_image(root: &Path) -> Self {
        let text = |name: &str| read_in(root, name).unwrap_or_default();
        Self::parse_all(&text("etc/passwd"), &text("etc/group"), |_| true)
    }

    fn parse(passwd: &str, group: &str) -> Self {
        Self::parse_all(passwd, group, |id| id < END_OF_SYSTEM || id == NOBODY)
    }

    fn parse_all(passwd: &str, group: &str, is_system: impl Fn(u32) -> bool) -> Self {
        let mut users: Vec<User> = passwd.lines().filter_map(user).filter(|u| is_system(u.uid)).collect();
        for line in ["root:x:0:0::/root:/bin/sh", "nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin"] {
            users.extend(user(line).filter(|known| users.iter().all(|u| u.uid != known.uid)));
        }
        let mut groups: Vec<Group> =
            group.lines().filter_map(group_of).filter(|g| is_system(g.gid)).collect();
        for line in ["root:x:0:", "nogroup:x:65534:"] {
            groups.extend(group_of(line).filter(|known| groups.iter().all(|g| g.gid != known.gid)));
        }
        for group in &mut groups {
            group.members.retain(|member| users.iter().any(|u| u.name == *member));
        }
        Self { users, groups }
    }

    /// The text of a `/etc/passwd`.
    pub(crate) fn passwd(&self) -> String {
        let line = |u: &User| format!("{}:x:{}:{}::{}:{}\n", u.name, u.uid, u.gid, u.home, u.shell);
        self.users.iter().map(line).collect()
    }

    /// The text of a `/etc/group`.
    pub(crate) fn group(&self) -> String {
        self.groups.iter().map(|g| format!("{}:x:{}:{}\n", g.name, g.gid, g.members.join(","))).collect()
    }

    /// The primary group of a user; group 0 of one that is not known.
    pub(crate) fn primary_group(&self, uid: u32) -> u32 {
        self.user(uid).map_or(0, |u| u.gid)
    }

    /// The groups that list a user as a member.
    pub(crate) fn groups_of(&self, uid: u32) -> Vec<u32> {
        let Some(user) = self.user(uid) else { return Vec::new() };
        self.groups.iter().filter(|g| g.members.contains(&user.name)).map(|g| g.gid).collect()
    }

    /// The home of a user; `/` of one that is not known.
    pub(crate) fn home(&self, uid: u32) -> &str {
        self.user(uid).map_or("/", |u| &u.home)
    }

    /// The id of a user of this name.
    pub(crate) fn uid(&self, name: &str) -> Option<u32> {
        self.users.iter().find(|u| u.name == name).map(|u| u.uid)
    }

    /// The id of a group of this name.
    pub(crate) fn gid(&self, name: &str) -> Option<u32> {
        self.groups.iter().find(|g| g.name == name).map(|g| g.gid)
    }

    fn user(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|u| u.uid == uid)
    }
}

/// A file of an image, whose links lead to nothing outside of its root.
fn read_in(root: &Path, name: &str) -> std::io::Result<String> {
    let root = File::open(root)?;
    let found = beneath::open(root.as_fd(), Path::new(name), Links::WithinRoot)?;
    if !File::from(found.try_clone()?).metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut text = Vec::new();
    let file = File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))?;
    file.take(MAX_FILE).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?.to_owned(), fields.next()?);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let (_comment, home, shell) = (fields.next()?, fields.next()?.to_owned(), fields.next()?.to_owned());
    Some(User { name, uid, gid, home, shell })
}

fn group_of(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?.to_owned(), fields.next()?);
    let gid = fields.next()?.parse().ok()?;
    let members = fields.next()?.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect();
    Some(Group { name, gid, members })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_passwords_stay_outside() {
        let passwd = "root:$6$hash:0:0:Ann Admin:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/bin/false\n\
                      ann:x:1000:1000:Ann:/home/ann:/bin/bash\nredis:x:103:106::/var/lib/redis:/bin/false\nbroken\n";
        let group = "root:x:0:\nwww-data:x:33:ann,redis\nann:x:1000:\nssl-cert:x:105:redis\n";
        let accounts = Accounts::parse(passwd, group);
        let text = accounts.passwd();
        assert!(
            text.starts_with("root:x:0:0::/root:/bin/bash\nwww-data:x:33:33::/var/www:/bin/false\n"),
            "{text}"
        );
        assert!(text.ends_with("nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"), "{text}");
        assert!(!text.contains("ann") && !text.contains("hash"), "{text}");
        assert_eq!(
            accounts.group(),
            "root:x:0:\nwww-data:x:33:redis\nssl-cert:x:105:redis\nnogroup:x:65534:\n"
        );
        assert_eq!((accounts.primary_group(103), accounts.groups_of(103)), (106, vec![33, 105]));
        assert_eq!((accounts.primary_group(4711), accounts.groups_of(4711)), (0, vec![]));
        assert_eq!((accounts.home(103), accounts.home(4711)), ("/var/lib/redis", "/"));
        assert_eq!(Accounts::parse("", "").passwd().lines().count(), 2);
    }
}
