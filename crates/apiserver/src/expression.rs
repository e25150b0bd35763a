// SPDX-License-Identifier: Apache-2.0
//! CEL expressions of policies and match conditions, and what they may look at. The work of each is estimated before it
//! runs, for the interpreter has no limit of its own. All of this runs [`crate::stack::with_room`].

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::parser::Parser;
use kube_cel::cel::{Context, IdedExpr, Value as Cel};
use serde_json::Value;

use crate::bounds::{MAX_BODY, MAX_ELEMENTS, OverBound, Work};
use crate::schema::Size;
use crate::stack::{MAX_EXPRESSION, MAX_OPERATORS};

/// Words that are fields of objects as well; Kubernetes writes the fields as `__word__`.
const ESCAPED: [&str; 4] = ["__dot__", "__dash__", "__slash__", "__underscores__"];
/// Deepest nesting of an expression. The parser has a limit of 96 of its own, and fails badly beyond it.
const MAX_NESTING: usize = 80;
/// Longest reason why an expression has no value, in bytes: it may show values. Most of them in one text.
const MAX_REASON: usize = 256;
const MAX_CAUSES: usize = 4;
/// What Kubernetes has (or a newer one) and is not served here.
const UNKNOWN: [(&str, &str); 2] = [
    ("authorizer", "checks of authorization are not served here"),
    ("lists.range", "lists.range is not served here"),
];

/// Why an expression cannot be evaluated, or has no value; the texts are for messages of the policy that has it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExpressionError {
    #[error("expression is not specified")]
    Missing,
    #[error("the expression is longer than {MAX_EXPRESSION} bytes")]
    TooLong,
    #[error("the expression has more than {MAX_OPERATORS} operators")]
    TooManyOperators,
    #[error("compilation failed: the expression is nested too deeply")]
    TooDeep,
    #[error("fields whose names are written with {word} are not served here")]
    EscapedField { word: &'static str },
    /// The parser's own words.
    #[error("compilation failed: {reason}")]
    Malformed { reason: String },
    #[error("compilation failed: {what}")]
    NotServed { what: &'static str },
    #[error("it may take {0}")]
    TooMuchWork(OverBound),
    #[error("its value is too large")]
    TooLarge,
    /// The interpreter's own words, shortened.
    #[error("{reason}")]
    NoValue { reason: String },
    #[error("its value is of type {found}, not {wanted}")]
    WrongType { found: String, wanted: &'static str },
}

/// An expression that can be evaluated.
#[derive(Debug)]
pub(crate) struct Expression {
    text: String,
    parsed: IdedExpr,
}

impl Expression {
    /// Reads an expression.
    ///
    /// # Errors
    /// Why it cannot be evaluated here.
    pub(crate) fn compile(text: &str) -> Result<Self, ExpressionError> {
        if text.trim().is_empty() {
            return Err(ExpressionError::Missing);
        }
        within_bounds(text)?;
        for word in ESCAPED {
            if text.contains(word) {
                return Err(ExpressionError::EscapedField { word });
            }
        }
        // Without optional fields (`a.?b`): the interpreter fails where they are missing.
        let parsed =
            Parser::default().parse(&text.replace(".__namespace__", ".namespace")).map_err(|error| {
                // The parser's first line says what and where; the others draw it.
                let text = error.to_string();
                ExpressionError::Malformed { reason: text.lines().next().unwrap_or_default().to_owned() }
            })?;
        let references = parsed.references();
        for (name, what) in UNKNOWN {
            if references.has_variable(name)
                || references.has_function(name)
                || references.has_function("range")
            {
                return Err(ExpressionError::NotServed { what });
            }
        }
        Ok(Self { text: text.to_owned(), parsed })
    }

    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it names a variable.
    pub(crate) fn has_variable(&self, name: &str) -> bool {
        self.parsed.references().has_variable(name)
    }
}

/// What the expressions of one policy may look at, and the work that is left to them.
pub(crate) struct Facts {
    context: Context<'static>,
    size: Size,
    work: Work,
    variables: HashMap<Key, Cel>,
    /// Why variables have no value.
    failures: Vec<(String, String)>,
}

impl Facts {
    /// Facts by the names that expressions have for them.
    pub(crate) fn new(variables: &[(&str, &Value)]) -> Self {
        let mut context = Context::default();
        context.register_all();
        let mut size = Size::default();
        for (name, value) in variables {
            size = size.with(Size::of(value));
            context.add_variable_from_value(*name, to_cel(value));
        }
        let mut facts =
            Self { context, size, work: Work::default(), variables: HashMap::new(), failures: Vec::new() };
        facts.bind();
        facts
    }

    fn bind(&mut self) {
        let map = Map { map: Arc::new(self.variables.clone()) };
        self.context.add_variable_from_value("variables", Cel::Map(map));
    }

    /// Evaluates a variable of a policy. One that has no value is missing where it is used, and only there.
    pub(crate) fn define(&mut self, name: &str, expression: &Result<Expression, ExpressionError>) {
        let value = match expression {
            Ok(expression) => self.evaluate(expression).and_then(|value| {
                let size = measure(&value).ok_or(ExpressionError::TooLarge)?;
                self.size = self.size.with(size);
                Ok(value)
            }),
            Err(why) => Err(why.clone()),
        };
        match value {
            Ok(value) => drop(self.variables.insert(Key::String(Arc::new(name.to_owned())), value)),
            Err(why) => self.failures.push((name.to_owned(), shortened(&why.to_string()))),
        }
        self.bind();
    }

    fn evaluate(&mut self, expression: &Expression) -> Result<Cel, ExpressionError> {
        let steps = crate::schema::expression_steps(&expression.text, self.size);
        self.work.spend(steps).map_err(ExpressionError::TooMuchWork)?;
        Cel::resolve(&expression.parsed, &self.context).map_err(|error| {
            let named =
                |failure: &&(String, String)| expression.text.contains(&format!("variables.{}", failure.0));
            let causes =
                self.failures.iter().filter(named).map(|(name, why)| format!("; variable '{name}': {why}"));
            let reason = shortened(&error.to_string()) + &causes.take(MAX_CAUSES).collect::<String>();
            ExpressionError::NoValue { reason }
        })
    }

    /// Evaluates a condition.
    ///
    /// # Errors
    /// It has no value, or none that is true or false.
    pub(crate) fn is_true(&mut self, expression: &Expression) -> Result<bool, ExpressionError> {
        match self.evaluate(expression)? {
            Cel::Bool(value) => Ok(value),
            other => Err(wrong_type(&other, "bool")),
        }
    }

    /// Evaluates a text.
    ///
    /// # Errors
    /// It has no value, or none that is a text.
    pub(crate) fn text(&mut self, expression: &Expression) -> Result<String, ExpressionError> {
        match self.evaluate(expression)? {
            Cel::String(text) => Ok(text.to_string()),
            other => Err(wrong_type(&other, "string")),
        }
    }
}

fn wrong_type(value: &Cel, wanted: &'static str) -> ExpressionError {
    ExpressionError::WrongType { found: value.type_of().to_string(), wanted }
}

/// Whether an expression is short and flat enough to be read, [with room](crate::stack).
///
/// # Errors
/// Which bound it exceeds.
pub(crate) fn within_bounds(text: &str) -> Result<(), ExpressionError> {
    if text.len() > MAX_EXPRESSION {
        return Err(ExpressionError::TooLong);
    }
    if text.bytes().filter(|byte| b".!-+*/%&|<>=,".contains(byte)).count() > MAX_OPERATORS {
        return Err(ExpressionError::TooManyOperators);
    }
    if nesting(text) > MAX_NESTING {
        return Err(ExpressionError::TooDeep);
    }
    Ok(())
}

/// How deep an expression may be nested: its brackets, and every condition, for they may be inside of each other.
fn nesting(text: &str) -> usize {
    let (mut open, mut deepest, mut conditions) = (0_usize, 0, 0);
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => open += 1,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            b'?' => conditions += 1,
            _ => {}
        }
        deepest = deepest.max(open);
    }
    deepest + conditions
}

fn shortened(text: &str) -> String {
    text.get(..text.floor_char_boundary(MAX_REASON)).unwrap_or_default().to_owned()
}

fn to_cel(value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(value) => Cel::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Cel::Int(number),
            (None, Some(number)) => Cel::UInt(number),
            (None, None) => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(list) => Cel::List(Arc::new(list.iter().map(to_cel).collect())),
        Value::Object(map) => {
            let map = map.iter().map(|(key, value)| (Key::String(Arc::new(key.clone())), to_cel(value)));
            Cel::Map(Map { map: Arc::new(map.collect()) })
        }
    }
}

/// The size of a value that an expression made; `None` when it is larger than a request can be.
fn measure(value: &Cel) -> Option<Size> {
    let (mut longest, mut text, mut elements) = (0, 0, 0);
    let mut rest = vec![value];
    while let Some(value) = rest.pop() {
        elements += 1;
        match value {
            Cel::List(list) => {
                longest = longest.max(list.len());
                rest.extend(list.iter());
            }
            Cel::Map(map) => {
                longest = longest.max(map.map.len());
                rest.extend(map.map.values());
            }
            Cel::String(value) => text += value.len(),
            Cel::Bytes(value) => text += value.len(),
            _ => {}
        }
        if elements > MAX_ELEMENTS || text > MAX_BODY || rest.len() > MAX_ELEMENTS {
            return None;
        }
    }
    Some(Size { longest, text })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judge(expression: &str) -> Result<bool, ExpressionError> {
        crate::stack::with_room(|| judged(expression)).unwrap()
    }

    fn judged(expression: &str) -> Result<bool, ExpressionError> {
        let object = json!({"metadata": {"name": "a", "namespace": "n", "annotations": {"x.io/y": "z"}},
            "spec": {"replicas": 3, "list": [{"n": 1}, {"n": 2}], "text": "abc"}});
        let mut facts =
            Facts::new(&[("object", &object), ("oldObject", &Value::Null), ("params", &json!({"max": 5}))]);
        facts.define("double", &Expression::compile("object.spec.replicas * 2"));
        facts.define("broken", &Expression::compile("object.spec.missing"));
        facts.define("next", &Expression::compile("variables.double + 1"));
        Expression::compile(expression).and_then(|expression| facts.is_true(&expression))
    }

    #[test]
    fn expressions_mean_what_they_mean_in_kubernetes() {
        for (expression, expected) in [
            ("object.spec.replicas <= params.max", Ok(true)),
            ("oldObject == null || oldObject.spec.replicas == 1", Ok(true)),
            ("object.metadata.annotations['x.io/y'] == 'z'", Ok(true)),
            ("object.metadata.annotations.exists(k, k == 'x.io/y')", Ok(true)),
            ("has(object.metadata.labels)", Ok(false)),
            ("!has(object.metadata.labels) || !('app' in object.metadata.labels)", Ok(true)),
            ("object.metadata.namespace == 'n' && object.metadata.__namespace__ == 'n'", Ok(true)),
            ("object.spec.list.all(x, x.n > 0) && object.spec.list.map(x, x.n).sum() == 3", Ok(true)),
            ("matches(object.spec.text, '^a') && object.spec.text.matches('c$')", Ok(true)),
            ("variables.next == 7", Ok(true)),
            ("object.spec.?missing.orValue(1) == 1", Err("unsupported syntax '.?'")),
            ("quantity('1Gi').isGreaterThan(quantity('1Mi'))", Ok(true)),
            ("object.spec.missing == 1", Err("missing")),
            ("variables.broken == 1", Err("variable 'broken'")),
            ("object.spec.text", Err("not bool")),
            ("object.spec.text +", Err("compilation failed")),
            ("authorizer.group('').resource('pods').check('get').allowed()", Err("not served here")),
            ("lists.range(1000000000).size() > 0", Err("not served here")),
            ("object.spec.a__dash__b == 1", Err("__dash__")),
            (" ", Err("not specified")),
        ] {
            match (judge(expression), expected) {
                (Ok(value), Ok(expected)) => assert_eq!(value, expected, "{expression}"),
                (Err(why), Err(part)) => assert!(why.to_string().contains(part), "{expression}: {why}"),
                (got, _) => panic!("{expression}: {got:?}"),
            }
        }
    }

    #[test]
    fn an_expression_at_a_bound_is_read_and_one_beyond_it_is_refused() {
        let padded = |length: usize| format!("'{}' == ''", "x".repeat(length - 8));
        let sum = |operators: usize| format!("1{} > 0", " + 1".repeat(operators - 1));
        let nested = |depth: usize| format!("{}true{}", "(".repeat(depth), ")".repeat(depth));
        let asked = |count: usize| format!("{}true", "true ? true : ".repeat(count));
        let within = |text: String| within_bounds(&text).is_ok();
        assert_eq!(padded(MAX_EXPRESSION).len(), MAX_EXPRESSION);
        assert!(within(padded(MAX_EXPRESSION)) && !within(padded(MAX_EXPRESSION + 1)));
        assert!(within(sum(MAX_OPERATORS)) && !within(sum(MAX_OPERATORS + 1)));
        assert!(within(nested(MAX_NESTING)) && !within(nested(MAX_NESTING + 1)));
        assert!(within(asked(MAX_NESTING)) && !within(asked(MAX_NESTING + 1)));
        // What is within the bounds is evaluated, and what is not is refused before it is parsed.
        for text in [padded(MAX_EXPRESSION), sum(MAX_OPERATORS), nested(MAX_NESTING), asked(MAX_NESTING)] {
            assert!(judge(&text).is_ok(), "{text}");
        }
        for text in [sum(MAX_OPERATORS + 1), nested(MAX_NESTING + 1)] {
            assert_eq!(judge(&text).unwrap_err(), within_bounds(&text).unwrap_err());
        }
    }

    /// The parser and the interpreter go down into an expression: none may be deeper than their stack.
    #[test]
    fn no_expression_is_too_deep_for_the_stack() {
        let forms = [
            ("(", "true", ")"),
            ("!", "true", ""),
            ("[", "", "]"),
            ("", "object", ".a"),
            ("", "true", " && true"),
            ("", "1", " + 1"),
            ("true ? true : ", "true", ""),
            ("{'a': ", "1", "}"),
        ];
        for (before, middle, after) in forms {
            for depth in [10, 60, 300, 1_999, 16_000] {
                let text = before.repeat(depth) + middle + &after.repeat(depth);
                let result = judge(&text);
                let is_plain = depth <= 10 && matches!(middle, "true" | "1");
                assert!(
                    !is_plain || !result.is_err_and(|why| why.to_string().contains("compilation")),
                    "{text}"
                );
            }
        }
    }

    /// Work that grows with a power of the object, and values that double.
    #[test]
    fn work_is_bounded_before_it_is_done() {
        let object = json!({"list": vec!["x".repeat(100); 3_000], "big": "y".repeat(500_000)});
        let facts = || Facts::new(&[("object", &object)]);
        for expression in [
            "object.list.all(a, object.list.all(b, a == b))",
            "object.list.map(x, object.big + x).size() > 0",
        ] {
            let why = facts().is_true(&Expression::compile(expression).unwrap()).unwrap_err();
            assert!(matches!(why, ExpressionError::TooMuchWork(_)), "{expression}: {why}");
        }
        let mut facts = facts();
        facts.define("v0", &Expression::compile("object.big + object.big"));
        for number in 1..40 {
            let text = format!("variables.v{0} + variables.v{0}", number - 1);
            facts.define(&format!("v{number}"), &Expression::compile(&text));
        }
        let size: usize = facts.variables.values().filter_map(measure).map(|size| size.text).sum();
        assert!(size < 8 * MAX_BODY, "{size}");
        assert!(facts.is_true(&Expression::compile("variables.v39 == ''").unwrap()).is_err());
    }
}
