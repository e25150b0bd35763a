// SPDX-License-Identifier: Apache-2.0
//! What the engine accepts: a policy that is not valid is refused by name, rule, clause and field, and never becomes part
//! of a decision.

use std::ops::Deref;
use std::sync::Arc;

use meltemi_model::NamespacedName;
use meltemi_model::authz::{
    Action, Attribute, Clause, ClauseOrigin, Match, Policy, Predicate, Rule, Scope, StringMatch, ValueMatch,
};

/// Rules of a policy at most. A Kubernetes object is full long before.
pub const MAX_RULES: usize = 131_072;
/// Clauses of a rule at most.
pub const MAX_CLAUSES: usize = 1024;
/// Matches of a clause at most.
pub const MAX_MATCHES: usize = 16_384;
/// Values, and not-values, of a predicate at most.
pub const MAX_VALUES: usize = 65_536;
/// Length of a text at most, in bytes.
pub const MAX_TEXT: usize = 8192;
/// Segments of a path template at most.
pub const MAX_SEGMENTS: usize = 256;

/// A policy that the engine takes: the proof is its existence. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidPolicy(Arc<Policy>, Kind);

/// What becomes of a policy, told without a look at it: sorting many is then cheap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Allow,
    Deny,
    Custom,
    /// AUDIT, and dry runs of all but ALLOW.
    Audit,
    DryAllow,
}

impl ValidPolicy {
    /// Checks a policy.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn new(policy: impl Into<Arc<Policy>>) -> Result<Self, InvalidPolicy> {
        let policy = policy.into();
        match check(&policy) {
            Ok(()) => Ok(Self::unchecked(policy)),
            Err(wrong) => Err(InvalidPolicy {
                policy: policy.name.clone(),
                rule: wrong.rule,
                clause: wrong.clause,
                field: wrong.field,
                reason: wrong.reason,
            }),
        }
    }

    /// Wraps a policy that is known to be valid.
    fn unchecked(policy: Arc<Policy>) -> Self {
        let kind = match &policy.action {
            Action::Allow if policy.dry_run => Kind::DryAllow,
            _ if policy.dry_run => Kind::Audit,
            Action::Audit => Kind::Audit,
            Action::Allow => Kind::Allow,
            Action::Deny => Kind::Deny,
            Action::Custom { .. } => Kind::Custom,
        };
        Self(policy, kind)
    }

    /// A policy that denies everything, in the place of one that cannot be enforced.
    pub fn deny_everything(name: NamespacedName, scope: Scope) -> Self {
        let rules = vec![Rule::default()];
        Self::unchecked(Arc::new(Policy { name, scope, action: Action::Deny, dry_run: false, rules }))
    }

    /// The same policy with those rules only that `keep` holds for.
    #[must_use]
    pub fn retain_rules(&self, keep: impl Fn(&Rule) -> bool) -> Self {
        let rules = self.rules.iter().filter(|rule| keep(rule)).cloned().collect();
        Self::unchecked(Arc::new(Policy { rules, ..Policy::clone(self) }))
    }

    /// The same policy with those predicates only that `keep` holds for. A clause that has a match without a predicate left
    /// matches everything and is left out.
    #[must_use]
    pub fn retain_predicates(&self, keep: impl Fn(ClauseOrigin, &Predicate) -> bool) -> Self {
        let kept_of = |origin: ClauseOrigin, one: &Match| Match {
            predicates: one.predicates.iter().filter(|p| keep(origin, p)).cloned().collect(),
        };
        let kept_clause = |clause: &Clause| {
            let matches: Vec<Match> = clause.matches.iter().map(|m| kept_of(clause.origin, m)).collect();
            let matches_all = matches.is_empty() || matches.iter().any(|m| m.predicates.is_empty());
            (!matches_all).then_some(Clause { origin: clause.origin, matches })
        };
        let kept_rule = |rule: &Rule| Rule { clauses: rule.clauses.iter().filter_map(kept_clause).collect() };
        let rules = self.rules.iter().map(kept_rule).collect();
        Self::unchecked(Arc::new(Policy { rules, ..Policy::clone(self) }))
    }

    /// The policy.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.0
    }

    pub(crate) fn kind(&self) -> Kind {
        self.1
    }

    /// Whether both are one and the same value in memory.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Deref for ValidPolicy {
    type Target = Policy;
    fn deref(&self) -> &Policy {
        &self.0
    }
}

/// A policy that the engine does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy {policy} is not valid{}: {field}: {reason}", place(.rule, .clause))]
pub struct InvalidPolicy {
    /// Its name.
    pub policy: NamespacedName,
    /// Index of the rule.
    pub rule: Option<usize>,
    /// Index of the clause in the rule.
    pub clause: Option<usize>,
    /// The field, as explanations name it.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
}

fn place(rule: &Option<usize>, clause: &Option<usize>) -> String {
    let part = |name: &str, index: &Option<usize>| index.map(|i| format!(" {name}[{i}]")).unwrap_or_default();
    format!("{}{}", part("rule", rule), part("clause", clause))
}

struct Wrong {
    rule: Option<usize>,
    clause: Option<usize>,
    field: String,
    reason: String,
}

impl Wrong {
    fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { rule: None, clause: None, field: field.into(), reason: reason.into() }
    }
}

fn at_most(field: &str, count: usize, limit: usize) -> Result<(), Wrong> {
    if count <= limit { Ok(()) } else { Err(Wrong::new(field, format!("{count} are more than {limit}"))) }
}

fn check(policy: &Policy) -> Result<(), Wrong> {
    // A policy of the whole mesh may come without a namespace.
    if policy.name.name.is_empty() {
        return Err(Wrong::new("name", "is empty"));
    }
    if let Action::Custom { provider } = &policy.action
        && provider.is_empty()
    {
        return Err(Wrong::new("provider.name", "is empty"));
    }
    at_most("rules", policy.rules.len(), MAX_RULES)?;
    for (index, rule) in policy.rules.iter().enumerate() {
        check_rule(rule).map_err(|wrong| Wrong { rule: Some(index), ..wrong })?;
    }
    Ok(())
}

fn check_rule(rule: &Rule) -> Result<(), Wrong> {
    at_most("clauses", rule.clauses.len(), MAX_CLAUSES)?;
    for (index, clause) in rule.clauses.iter().enumerate() {
        check_clause(clause).map_err(|wrong| Wrong { clause: Some(index), ..wrong })?;
    }
    Ok(())
}

fn check_clause(clause: &Clause) -> Result<(), Wrong> {
    at_most("matches", clause.matches.len(), MAX_MATCHES)?;
    clause.matches.iter().try_for_each(check_match)
}

fn check_match(one: &Match) -> Result<(), Wrong> {
    if *one == Match::never() {
        return Ok(());
    }
    for (index, predicate) in one.predicates.iter().enumerate() {
        let field = predicate.attribute.to_string();
        if one.predicates[..index].iter().any(|p| p.attribute == predicate.attribute) {
            return Err(Wrong::new(field, "is there twice in one match"));
        }
        check_predicate(predicate, &field)?;
    }
    Ok(())
}

fn check_predicate(predicate: &Predicate, field: &str) -> Result<(), Wrong> {
    if let Some(reason) = bad_attribute(&predicate.attribute) {
        return Err(Wrong::new(field, reason));
    }
    if predicate.values.is_empty() && predicate.not_values.is_empty() {
        return Err(Wrong::new(field, "has neither values nor not-values"));
    }
    at_most(field, predicate.values.len().max(predicate.not_values.len()), MAX_VALUES)?;
    for value in predicate.values.iter().chain(&predicate.not_values) {
        if let Some(reason) = bad_value(&predicate.attribute, value) {
            return Err(Wrong::new(field, reason));
        }
    }
    Ok(())
}

fn bad_attribute(attribute: &Attribute) -> Option<String> {
    match attribute {
        Attribute::Header(name) => {
            let token = |b: u8| {
                b.is_ascii_graphic() && !b.is_ascii_uppercase() && !b"\"(),/:;<=>?@[\\]{}".contains(&b)
            };
            let pseudo = name.strip_prefix(':').unwrap_or(name);
            let fine = !pseudo.is_empty() && pseudo.len() <= MAX_TEXT && pseudo.bytes().all(token);
            (!fine).then(|| format!("{name:?} is not a name of a header in lower case"))
        }
        Attribute::RequestAuthClaim(path) => {
            let fine = !path.is_empty()
                && path.len() <= 64
                && path.iter().all(|p| !p.is_empty() && p.len() <= MAX_TEXT);
            (!fine).then(|| "a claim has 1 to 64 names, none of them empty".to_owned())
        }
        _ => None,
    }
}

fn bad_value(attribute: &Attribute, value: &ValueMatch) -> Option<String> {
    let fits = match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            matches!(value, ValueMatch::Cidr(_))
        }
        Attribute::DestinationPort => matches!(value, ValueMatch::Port(_)),
        Attribute::SourceServiceAccount => matches!(value, ValueMatch::ServiceAccount { .. }),
        Attribute::Path => matches!(value, ValueMatch::String(_) | ValueMatch::PathTemplate(_)),
        // Whatever its values are, nobody looks at them.
        Attribute::Unsupported(_) => return None,
        _ => matches!(value, ValueMatch::String(_)),
    };
    if !fits {
        return Some(format!("{value:?} is of another kind than the field"));
    }
    match value {
        ValueMatch::String(text) => bad_text(text),
        ValueMatch::ServiceAccount { namespace, name } => {
            let bad = |part: &str| part.is_empty() || part.len() > MAX_TEXT || part.contains(['/', '*']);
            (bad(namespace) || bad(name)).then(|| format!("{namespace}/{name} is not a namespace and a name"))
        }
        ValueMatch::PathTemplate(template) => bad_template(&template.0),
        ValueMatch::Cidr(_) | ValueMatch::Port(_) => None,
    }
}

fn bad_text(text: &StringMatch) -> Option<String> {
    match text {
        StringMatch::Presence => None,
        StringMatch::Exact(exact) if exact.is_empty() => Some("empty value".to_owned()),
        StringMatch::Exact(t) | StringMatch::Prefix(t) | StringMatch::Suffix(t) if t.len() > MAX_TEXT => {
            Some(format!("a text of {} bytes is longer than {MAX_TEXT}", t.len()))
        }
        // `**` has nothing between its stars; as a text it would stand for a star that no request has.
        StringMatch::Prefix(t) | StringMatch::Suffix(t) if t.bytes().all(|b| b == b'*') => {
            Some(format!("{:?} has no text beside its `*`", text.to_string()))
        }
        _ => None,
    }
}

/// Istio's rules for templates: operators are whole segments, `{**}` is the last of them, the rest is literal.
fn bad_template(template: &str) -> Option<String> {
    let bad = |why: &str| Some(format!("invalid or unsupported path {template}: {why}"));
    if template.len() > MAX_TEXT {
        return Some(format!("a template of {} bytes is longer than {MAX_TEXT}", template.len()));
    }
    let Some(rest) = template.strip_prefix('/') else { return bad("it does not begin with `/`") };
    if rest.split('/').count() > MAX_SEGMENTS {
        return Some(format!("a template has more than {MAX_SEGMENTS} segments"));
    }
    let (mut some, mut any) = (false, false);
    // A slash at the end is no segment.
    for segment in rest.trim_end_matches('/').split('/') {
        if segment == "{*}" || segment == "{**}" {
            if any {
                return bad("{**} is not the last operator");
            }
            (some, any) = (true, segment == "{**}");
            continue;
        }
        if segment.contains(['{', '}']) {
            return bad("Contains '{' or '}' beyond a supported path template");
        }
        let literal = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=".contains(&b);
        if segment.is_empty() || !segment.bytes().all(literal) {
            return bad(&format!("Contains segment {segment} with invalid string literal"));
        }
    }
    if some { None } else { bad("it has no operator") }
}

#[cfg(test)]
mod tests;
