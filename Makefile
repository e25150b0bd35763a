# The front door: README.md says what each word does.
.PHONY: check test
check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo xtask deps
test:
	cargo test --workspace
