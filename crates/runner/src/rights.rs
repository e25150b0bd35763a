// SPDX-License-Identifier: Apache-2.0
//! Who a container runs as and what it may do there: the security contexts of a Pod and its containers, put together.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SecurityContext};
use meltemi_linux::caps::Capabilities;

use crate::accounts::Accounts;
use crate::pod_init::Rights;

/// Whether a container is one of the mesh's own on the node's network that may enter other Pods' namespaces.
pub(crate) fn is_network_admin(pod: &Pod, container: &Container) -> bool {
    let system = pod.metadata.namespace.as_deref() == Some("istio-system");
    let host = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let adds = capabilities(container, |c| c.add.as_ref());
    system && host && adds.iter().any(|name| *name == "NET_ADMIN" || *name == "SYS_ADMIN")
}

/// Whether a Pod is one of the mesh's own that have no user namespace of their own: what they do on the node would not
/// be possible from inside of one.
pub(crate) fn is_system(pod: &Pod) -> bool {
    pod.spec.iter().flat_map(|s| &s.containers).any(|c| is_network_admin(pod, c))
}

/// The users and groups that a Pod names.
pub(crate) fn named_ids(pod: &Pod) -> BTreeSet<u32> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let mut ids: Vec<i64> = Vec::new();
    if let Some(context) = &spec.security_context {
        ids.extend([context.run_as_user, context.run_as_group, context.fs_group].into_iter().flatten());
        ids.extend(context.supplemental_groups.iter().flatten());
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let context = container.security_context.as_ref();
        ids.extend(context.iter().flat_map(|c| [c.run_as_user, c.run_as_group]).flatten());
    }
    ids.into_iter().filter_map(|id| u32::try_from(id).ok()).collect()
}

/// The group that owns a Pod's volumes.
pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// User and group that the configuration of an image says: `USER[:GROUP]`, names or numbers.
///
/// # Errors
/// The image has no such user or group.
pub(crate) fn of_image(user: &str, accounts: &Accounts) -> Result<(u32, Option<u32>), String> {
    let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let uid = match user.parse() {
        Ok(uid) => uid,
        Err(_) if user.is_empty() => 0,
        Err(_) => accounts
            .uid(user)
            .ok_or_else(|| format!("unable to find user {user}: no matching entries in passwd file"))?,
    };
    let gid = group.filter(|group| !group.is_empty()).map(|group| match group.parse() {
        Ok(gid) => Ok(gid),
        Err(_) => accounts
            .gid(group)
            .ok_or_else(|| format!("unable to find group {group}: no matching entries in group file")),
    });
    Ok((uid, gid.transpose()?))
}

/// What a container runs with. `image_user` is what the configuration of its image says.
///
/// # Errors
/// It may not run as root and would, or the image has no such user; the text is what Kubernetes shows.
pub(crate) fn of(
    pod: &Pod,
    container: &Container,
    image_user: &str,
    accounts: &Accounts,
) -> Result<Rights, String> {
    if is_system(pod) {
        let of_the_manifest = !crate::pod::ephemeral::is_one(pod, &container.name);
        let is_admin = of_the_manifest && is_network_admin(pod, container);
        return Ok(if is_admin { Rights::NetworkAdmin } else { Rights::Nothing });
    }
    let whole = PodSecurityContext::default();
    let whole = pod.spec.as_ref().and_then(|s| s.security_context.as_ref()).unwrap_or(&whole);
    let own = SecurityContext::default();
    let own = container.security_context.as_ref().unwrap_or(&own);
    let id = |field: &str, id: Option<i64>| match id {
        None => Ok(None),
        Some(id) => u32::try_from(id).map(Some).map_err(|_| format!("{field} {id} is not valid")),
    };
    let asked = id("runAsUser", own.run_as_user.or(whole.run_as_user))?;
    let (image_uid, image_gid) = match asked {
        Some(_) => (0, None),
        None => of_image(image_user, accounts)?,
    };
    let uid = asked.unwrap_or(image_uid);
    // A name may be root's by another name in every image.
    let name = image_user.split(':').next().unwrap_or_default();
    let is_named = asked.is_none() && !name.is_empty() && name.parse::<u32>().is_err();
    if own.run_as_non_root.or(whole.run_as_non_root) == Some(true) && (uid == 0 || is_named) {
        let why = match asked {
            Some(_) => "container's runAsUser breaks non-root policy".to_owned(),
            None if is_named => format!(
                "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
            ),
            None => "container has runAsNonRoot and image will run as root".to_owned(),
        };
        let name = |text: &Option<String>| text.clone().unwrap_or_default();
        let (meta, container) = (&pod.metadata, &container.name);
        let pod = format!("{}_{}({})", name(&meta.name), name(&meta.namespace), name(&meta.uid));
        return Err(format!("{why} (pod: {pod:?}, container: {container})"));
    }
    let group = id("runAsGroup", own.run_as_group.or(whole.run_as_group))?;
    let gid = group.or(image_gid).unwrap_or_else(|| accounts.primary_group(uid));
    let mut groups: BTreeSet<u32> = BTreeSet::new();
    for group in whole.supplemental_groups.iter().flatten() {
        groups.extend(id("supplementalGroups", Some(*group))?);
    }
    groups.extend(id("fsGroup", whole.fs_group)?);
    if whole.supplemental_groups_policy.as_deref() != Some("Strict") {
        groups.extend(accounts.groups_of(uid));
    }
    let capabilities = granted(container).bits();
    Ok(Rights::User { uid, gid, groups: groups.into_iter().collect(), capabilities })
}

/// The default set without those dropped, and those of it that are added again.
fn granted(container: &Container) -> Capabilities {
    let set = |names: &[&str]| {
        let named = names.iter().filter_map(|name| Capabilities::named(name));
        named.fold(Capabilities::NONE, Capabilities::with)
    };
    let (drop, add) =
        (capabilities(container, |c| c.drop.as_ref()), capabilities(container, |c| c.add.as_ref()));
    Capabilities::CONTAINER.without(set(&drop)).with(set(&add).and(Capabilities::CONTAINER))
}

/// The capabilities that a container asks for and does not get.
pub(crate) fn refused_capabilities(container: &Container) -> bool {
    let adds = capabilities(container, |c| c.add.as_ref());
    adds.iter().any(|name| {
        Capabilities::named(name).is_none_or(|set| set.without(Capabilities::CONTAINER) != Capabilities::NONE)
    })
}

fn capabilities<'a>(
    container: &'a Container,
    which: impl Fn(&'a k8s_openapi::api::core::v1::Capabilities) -> Option<&'a Vec<String>>,
) -> Vec<&'a str> {
    let asked = container.security_context.as_ref().and_then(|s| s.capabilities.as_ref()).and_then(which);
    asked.into_iter().flatten().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(context: Value, container: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": context, "containers": [{"name": "c", "securityContext": container}]}
        }))
        .unwrap()
    }

    fn rights(context: Value, container: Value) -> Result<Rights, String> {
        let etc = tempfile::tempdir().unwrap();
        std::fs::write(etc.path().join("passwd"), "web:x:33:34::/w:/bin/sh\n").unwrap();
        std::fs::write(etc.path().join("group"), "web:x:34:\nlogs:x:4:web\n").unwrap();
        let pod = pod(context, container);
        of(&pod, &pod.spec.clone().unwrap().containers[0], "", &Accounts::read(etc.path()))
    }

    #[test]
    fn the_images_user_is_in_force_where_the_manifest_names_none() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::fs::write(root.path().join("etc/passwd"), "app:x:5000:6000::/app:/bin/sh\n").unwrap();
        std::fs::write(root.path().join("etc/group"), "app:x:6000:\nlogs:x:7000:app\n").unwrap();
        let accounts = Accounts::of_image(root.path());
        let rights = |context: Value, user: &str| {
            let pod = pod(json!({}), context);
            of(&pod, &pod.spec.clone().unwrap().containers[0], user, &accounts)
        };
        for (context, user, expected) in [
            (json!({}), "", (0, 0, vec![])),
            (json!({}), "app", (5000, 6000, vec![7000])),
            (json!({}), "app:logs", (5000, 7000, vec![7000])),
            (json!({}), "5000:3", (5000, 3, vec![7000])),
            (json!({"runAsNonRoot": true}), "65532", (65532, 0, vec![])),
            (json!({"runAsUser": 7, "runAsNonRoot": true}), "nobody-here:x", (7, 0, vec![])),
            (json!({"runAsGroup": 8}), "app:logs", (5000, 8, vec![7000])),
        ] {
            let Ok(Rights::User { uid, gid, groups, .. }) = rights(context.clone(), user) else {
                panic!("{context} {user}");
            };
            assert_eq!((uid, gid, groups), expected, "{context} {user}");
        }
        for (context, user, why) in [
            (json!({"runAsNonRoot": true}), "app", "image has non-numeric user (app), cannot verify"),
            (json!({"runAsNonRoot": true}), "0:0", "image will run as root"),
            (json!({}), "none", "unable to find user none: no matching entries in passwd file"),
            (json!({}), "app:none", "unable to find group none: no matching entries in group file"),
        ] {
            let error = rights(context, user).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let cases = [
            (json!({}), json!({}), (0, 0, vec![])),
            (json!({"runAsUser": 33}), json!({}), (33, 34, vec![4])),
            (json!({"runAsUser": 33, "supplementalGroupsPolicy": "Strict"}), json!({}), (33, 34, vec![])),
            (json!({"runAsUser": 33, "runAsGroup": 7}), json!({"runAsUser": 5000}), (5000, 7, vec![])),
            (
                json!({"fsGroup": 9, "supplementalGroups": [8, 9]}),
                json!({"runAsGroup": 3}),
                (0, 3, vec![8, 9]),
            ),
            (json!({"runAsNonRoot": true}), json!({"runAsUser": 1}), (1, 0, vec![])),
            (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), (0, 0, vec![])),
        ];
        for (whole, own, expected) in cases {
            let Ok(Rights::User { uid, gid, groups, .. }) = rights(whole.clone(), own.clone()) else {
                panic!("{whole} {own}");
            };
            assert_eq!((uid, gid, groups), expected, "{whole} {own}");
        }
    }

    #[test]
    fn root_is_refused_in_kubernetes_words() {
        let error = rights(json!({"runAsNonRoot": true}), json!({})).unwrap_err();
        assert_eq!(
            error,
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        let error = rights(json!({"runAsUser": 0}), json!({"runAsNonRoot": true})).unwrap_err();
        assert_eq!(error, "container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)");
        assert!(rights(json!({"runAsUser": -1}), json!({})).is_err());
    }

    #[test]
    fn capabilities_are_dropped_and_added_within_the_default_set() {
        let granted = |capabilities: Value| match rights(json!({}), json!({"capabilities": capabilities})) {
            Ok(Rights::User { capabilities, .. }) => Capabilities::from_bits(capabilities),
            other => panic!("{other:?}"),
        };
        let named = |name: &str| Capabilities::named(name).unwrap();
        assert_eq!(granted(json!({})), Capabilities::CONTAINER);
        assert_eq!(granted(json!({"drop": ["ALL"]})), Capabilities::NONE);
        assert_eq!(granted(json!({"drop": ["ALL"], "add": ["CHOWN", "SYS_ADMIN"]})), named("CHOWN"));
        assert_eq!(granted(json!({"add": ["ALL"]})), Capabilities::CONTAINER);
        assert_eq!(
            granted(json!({"drop": ["CAP_SETUID"]})),
            Capabilities::CONTAINER.without(named("SETUID"))
        );
    }

    #[test]
    fn only_the_meshs_own_on_the_nodes_network_are_the_nodes() {
        let context = json!({"capabilities": {"add": ["NET_ADMIN"]}});
        let mut pod = pod(json!({}), context);
        assert!(!is_system(&pod));
        pod.spec.as_mut().unwrap().host_network = Some(true);
        assert!(!is_system(&pod));
        pod.metadata.namespace = Some("istio-system".into());
        assert!(is_system(&pod));
    }
}
