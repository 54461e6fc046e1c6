//! Hostile chat templates: an error or a text, never a panic, a hang, an overflow of the stack or more than 1 GiB
//! allocated.

use cap::Cap;
use oxgpt_engine::prompt::{ChatTemplate, Conversation, TemplateError, TemplateTokens, message};
use proptest::prelude::*;
use std::alloc::System;

/// An allocation beyond the limit aborts the test.
#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, 1 << 30);

fn render(source: &str) -> Result<String, TemplateError> {
    let conversation = Conversation {
        messages: vec![message("user", "Hello"), message("assistant", "there")],
        ..Conversation::default()
    };
    let template = ChatTemplate::new(source, TemplateTokens::default())?;
    Ok(template.render(&conversation)?.text())
}

/// A loop whose every round changes `ns.x`, which begins as `start`.
fn rounds(start: &str, change: &str, end: &str) -> String {
    format!(
        "{{% set ns = namespace(x={start}, y={start}) %}}{{% for i in range(99999) %}}{{% set ns.x = {change} %}}\
         {{% endfor %}}{{{{ {end} }}}}"
    )
}

fn refused(source: &str) {
    let result = render(source);
    let is_refused = matches!(
        result,
        Err(TemplateError::Endless | TemplateError::Render { .. } | TemplateError::Syntax { .. })
    );
    assert!(is_refused, "{}: {result:?}", &source[..source.len().min(200)]);
}

#[test]
fn a_list_that_doubles_is_refused() {
    for change in [
        "ns.x + ns.x",
        "(ns.x) + (ns.x[0:])",
        "ns.x + [] + ns.x",
        "[] + (ns.x + ns.x)",
        "ns.x * 2",
        "ns.x * 2 + [1]",
        "(ns.x, ns.x)",
        "(ns.x + ns.x) if i else [1]",
        "[[1], ns.x, ns.x]|sum(start=[])",
        "ns.x|chain(ns.x)",
        "(ns.x|list) + (ns.x|list)",
        "ns.x|map('upper')|list + ns.x",
        "{'a': ns.x + ns.x}.a",
        "dict(a=ns.x + ns.x).a",
        "[ns.x + ns.x][0]",
    ] {
        for end in
            ["ns.x | length", "ns.x | tojson", "ns.x == ns.y", "(ns.x + [1]) | list | length", "1"]
        {
            refused(&rounds("[1]", change, end));
        }
    }
    let straight = "{% set x = x + x %}".repeat(2000);
    refused(&format!("{{% set x = [1] %}}{straight}{{{{ x | length }}}}"));
    let large = "[1] * 99999999";
    refused(&format!("{{{{ ({}) | length }}}}", vec![large; 40].join(" + ")));
    let attributes = vec!["{'in': [1] * 99999999}.in"; 40].join(" + ");
    refused(&format!("{{{{ ({attributes}) | length }}}}"));
    let nested = format!("{}{large}{}", "[1] + (".repeat(40), ")".repeat(40));
    refused(&format!("{{{{ ({nested}) | length }}}}"));
}

#[test]
fn a_value_that_grows_deeper_is_refused() {
    for change in [
        "[ns.x]",
        "[[[ns.x]]]",
        "{'a': ns.x}",
        "dict(a=ns.x)",
        "namespace(x=ns.x)",
        "namespace({'x': ns.x})",
        "(ns.x, 1)",
        "[ns.x[0:]]",
        "[ns.x|reverse]",
        "ns",
        "ns.x|items",
        "ns.x|batch(1)",
        "[ns.x]|map('list')",
        "[ns.x]|groupby(0)",
        "zip(ns.x, ns.x)|list",
    ] {
        for end in [
            "1",
            "ns.x",
            "ns.x | tojson",
            "ns.x == ns.y",
            "ns.x | pprint",
            "{ns.x: 1}",
            "[ns.x]|sort",
            "ns.x in [ns.y]",
        ] {
            // Refused, or as shallow as before.
            let _ = render(&rounds("[[1]]", change, end));
        }
    }
    refused(&rounds("[1]", "[ns.x]", "1"));
    refused(&rounds("[1]", "{'a': ns.x}", "1"));
    refused(&rounds("[1]", "namespace(x=ns.x)", "1"));
    refused(&rounds("[1]", "ns", "1"));
    let straight = "{% set x = [x] %}".repeat(10_000);
    refused(&format!("{straight}{{{{ x }}}}"));
    let macros = "{% macro m() %}{{ x }}{% endmacro %}{% set x = m %}".repeat(4_000);
    refused(&format!("{macros}{{{{ x() }}}}"));
    let lazy = "{% set ns.x = ns.x[0:] %}";
    refused(&format!("{{{{ messages{} }}}}", "[:]".repeat(100)));
    let many = lazy.repeat(5_000);
    assert_eq!(
        render(&format!("{{% set ns = namespace(x=[7]) %}}{many}{{{{ ns.x }}}}"))
            .expect("it renders"),
        "[7]"
    );
}

#[test]
fn a_long_expression_has_room() {
    const LONG: usize = 120_000;
    for (first, more) in [
        ("1", "+1"),
        ("1", "~1"),
        ("'a'", "|e"),
        ("messages", "[:]"),
        ("messages", "|list"),
        ("messages", "+[1]"),
        ("true", " and 1"),
        ("1", "<1"),
        ("1", "**1"),
        ("", "not "),
        ("", "-"),
        ("", "("),
        ("", "["),
        ("", "{1:"),
        ("messages", ".a"),
        ("1", " if 1 else 1"),
        ("messages", "()"),
    ] {
        for count in [60, 1000, 4000, LONG / more.len()] {
            let source = format!("{{{{ {first}{} }}}}", more.repeat(count));
            let _ = render(&source);
            let _ = render(&source.replace("}}", "1 }}"));
        }
    }
    for block in [
        "{% if 1 %}",
        "{% for a in [1] %}",
        "{% filter upper %}",
        "{% set a %}",
        "{% macro m() %}",
        "{% with %}",
        "{% call m() %}",
    ] {
        let _ = render(&block.repeat(LONG / block.len()));
    }
    let _ =
        render(&("{% if 0 %}a".to_owned() + &"{% elif 0 %}a".repeat(LONG / 13) + "{% endif %}"));
}

#[test]
fn what_cannot_be_called_is_named() {
    for (source, cause) in [
        ("{{ no_such_function() }}", "no_such_function"),
        ("{{ 'a' | no_such_filter }}", "no_such_filter"),
        ("{{ 1 is no_such_test }}", "no_such_test"),
        ("{{ 'a'.no_such_method() }}", "no_such_method"),
        ("{% include 'other' %}", "include"),
        ("{% if %}", "line 1"),
        ("{{ raise_exception('Not like this: ' + messages[0].role) }}", "Not like this: user"),
        ("{{ 'a' + 1 }}", "unsupported types"),
    ] {
        let error = render(source).expect_err(source).to_string();
        assert!(error.contains(cause) && !error.contains('\n'), "{source}: {error}");
    }
}

/// Expressions from a small grammar: what the bounds change in the source must change nothing in the result.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("1"),
        Just("2.5"),
        Just("'a'"),
        Just("\"b'+\""),
        Just("[1, 2]"),
        Just("[]"),
        Just("(1, 2)"),
        Just("{'a': 1}"),
        Just("x"),
        Just("messages[0].role"),
        Just("messages|length"),
        Just("none"),
        Just("missing"),
        Just("-3"),
        Just("1e+2"),
        Just("(x is defined)"),
        Just("(x is not none)"),
        Just("'a'|upper"),
        Just("{'in': 1, 'b': {'c': 2}}['in']"),
    ]
    .prop_map(str::to_owned);
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            (
                inner.clone(),
                prop::sample::select(vec![
                    "+", " + ", "-", " - ", "*", "~", "==", "<", " and ", " or ", " in ",
                    " not in ", "//", "%"
                ]),
                inner.clone()
            )
                .prop_map(|(a, operator, b)| format!("{a}{operator}{b}")),
            (inner.clone(), inner.clone(), inner.clone())
                .prop_map(|(a, b, c)| format!("{a} if {b} else {c}")),
            inner.clone().prop_map(|a| format!("({a})")),
            inner.clone().prop_map(|a| format!("[{a}, 7]")),
            inner.clone().prop_map(|a| format!("{{'k': {a}}}")),
            inner.clone().prop_map(|a| format!("not {a}")),
            inner.clone().prop_map(|a| format!("({a})|string|length")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})|default({b}, true)")),
            inner.prop_map(|a| format!("[1, 2, 3][{a}:]")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_refused_or_renders(source in "(\\{\\{|\\{%|%\\}|\\}\\}|set|raw|endraw|x|=|\\+|-|\\(|\\)|\\[|\\]|'|\"|\\||é| |#\\}|\\{#|if|for|in){0,60}") {
        let _ = render(&source);
    }

    #[test]
    fn bounds_change_no_result(expression in expression()) {
        // An expression of its own is compiled as it is.
        let mut environment = minijinja::Environment::new();
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Lenient);
        environment.set_recursion_limit(200);
        let context = minijinja::context! { x => vec![1, 2], messages => [minijinja::context! { role => "user" }, minijinja::context! { role => "assistant" }] };
        let plain = environment.render_str(&format!("{{{{ {expression} }}}}"), &context).ok();
        for source in [format!("{{{{ {expression} }}}}"), format!("{{%- set y = {expression} -%}}{{{{ y }}}}"), format!("{{% if 1 %}}{{{{- {expression} -}}}}{{% endif %}}")] {
            let source = format!("{{% set x = [1, 2] %}}{source}");
            prop_assert_eq!(render(&source).ok(), plain.clone(), "{}", source);
        }
    }
}
