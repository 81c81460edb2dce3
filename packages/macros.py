# What the BUILD files of the packages share. Pants calls these; nothing imports them.


def guie_package(needs=(), tests_need=()):
    """One package: sources, wheel and tests.

    needs: the siblings it builds on, "core" for packages/guie-core. tests_need: those that its tests use besides.
    """
    name = build_file_dir().name
    resources(name="data", sources=["src/**/*", "!src/**/*.py", "!src/**/*.pyi"])
    python_sources(
        name="src",
        sources=["src/**/*.py", "src/**/*.pyi"],
        # all of a sibling, since plugins name what they offer in strings
        dependencies=[":data", *(f"packages/guie-{other}:src" for other in needs)],
    )
    resources(name="metadata", sources=["pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE"])
    python_distribution(
        name="wheel",
        dependencies=[":src", ":metadata"],
        provides=python_artifact(name=name),
        generate_setup=False,  # it would write exact pins into the metadata: pyproject.toml has it all
        sdist=False,
    )
    resources(name="test_data", sources=["tests/**/*", "!tests/**/*.py"])
    python_test_utils(
        name="test_utils",
        sources=["tests/**/*.py", "!tests/**/test_*.py"],
        skip_mypy=True,
    )
    python_tests(
        name="tests",
        sources=["tests/**/test_*.py"],
        dependencies=[
            *(":src", ":metadata", ":test_data", ":test_utils"),
            *(f"packages/guie-{other}:src" for other in tests_need),
        ],
        skip_mypy=True,  # mypy is for what others build on
        batch_compatibility_tag=name,  # one process for a package: torch is imported once
        timeout=900,
    )
