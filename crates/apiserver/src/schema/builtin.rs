// SPDX-License-Identifier: Apache-2.0
//! Schemas of the built-in kinds, from the types of k8s-openapi.

use std::collections::HashMap;

use k8s_openapi::Resource;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value};

type Names = HashMap<(String, String, String), String>;

fn add<K: Resource + JsonSchema>(generator: &mut SchemaGenerator, names: &mut Names) {
    generator.subschema_for::<K>();
    names.insert((K::GROUP.into(), K::VERSION.into(), K::KIND.into()), K::schema_name().into_owned());
}

macro_rules! kinds {
    ($generator:expr, $names:expr, $($group:ident :: $version:ident :: { $($kind:ident),+ }),+ $(,)?) => {
        $($(add::<k8s_openapi::api::$group::$version::$kind>($generator, $names);)+)+
    };
}

fn all() -> (SchemaGenerator, Names) {
    let mut generator = SchemaGenerator::default();
    let mut names = Names::new();
    kinds!(
        &mut generator, &mut names,
        core::v1::{Namespace, Node, Pod, Service, Endpoints, ServiceAccount, ConfigMap, Secret, LimitRange,
            ResourceQuota, PersistentVolumeClaim, PersistentVolume, ReplicationController, PodTemplate, Event, Binding},
        apps::v1::{Deployment, ReplicaSet, DaemonSet, StatefulSet, ControllerRevision},
        batch::v1::{Job, CronJob},
        discovery::v1::{EndpointSlice},
        events::v1::{Event},
        coordination::v1::{Lease},
        autoscaling::v1::{Scale},
        autoscaling::v2::{HorizontalPodAutoscaler},
        policy::v1::{PodDisruptionBudget, Eviction},
        networking::v1::{NetworkPolicy, Ingress, IngressClass},
        rbac::v1::{Role, RoleBinding, ClusterRole, ClusterRoleBinding},
        scheduling::v1::{PriorityClass},
        storage::v1::{StorageClass},
        admissionregistration::v1::{ValidatingWebhookConfiguration, MutatingWebhookConfiguration,
            ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        authentication::v1::{TokenRequest, TokenReview, SelfSubjectReview},
        authorization::v1::{SubjectAccessReview, SelfSubjectAccessReview, LocalSubjectAccessReview,
            SelfSubjectRulesReview},
    );
    add::<k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition>(
        &mut generator,
        &mut names,
    );
    add::<k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService>(
        &mut generator,
        &mut names,
    );
    (generator, names)
}

pub(super) fn definitions() -> Map<String, Value> {
    let mut definitions = all().0.take_definitions(true);
    // Any JSON, whatever the published schema says: defaults, enumerations and examples inside CRDs.
    for name in ["JSON", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrStringArray"] {
        let full = format!("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.{name}");
        if let Some(definition) = definitions.get_mut(&full).and_then(Value::as_object_mut) {
            definition.remove("type");
            definition.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        }
    }
    for row in include_str!("lists.txt").lines().filter(|line| !line.starts_with('#')) {
        declare_merging(&mut definitions, row);
    }
    definitions
}

/// The types do not tell how their lists are merged; clients and patches want to know.
fn declare_merging(definitions: &mut Map<String, Value>, row: &str) {
    let mut words = row.split(' ');
    let mut next = || words.next().unwrap_or("-");
    let (definition, field, kind, strategy, key) = (next(), next(), next(), next(), next());
    let property = definitions.get_mut(definition).and_then(|d| d.get_mut("properties")?.get_mut(field));
    let Some(property) = property.and_then(Value::as_object_mut) else { return };
    let mut set = |name: &str, value: Value| property.insert(format!("x-kubernetes-{name}"), value);
    if let (kind, keys) = kind.split_once(':').unwrap_or((kind, ""))
        && kind != "-"
    {
        set("list-type", kind.into());
        if !keys.is_empty() {
            set("list-map-keys", keys.split(',').collect());
        }
    }
    if strategy != "-" {
        set("patch-strategy", strategy.into());
    }
    if key != "-" {
        set("patch-merge-key", key.into());
    }
}

pub(super) fn names() -> Names {
    all().1
}
