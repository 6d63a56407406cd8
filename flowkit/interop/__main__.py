"""`python -m flowkit.interop`: what is installed here, and what can be converted."""

from importlib.metadata import PackageNotFoundError, version

FRIENDS = (
    ("FrEIA", "from_freia(network), FreiaBijection(module), as_freia(bijection)"),
    ("nflows", "from_nflows(flow, condition=shape), NflowsTransform(transform, shape)"),
    ("zuko", "from_zuko(flow, condition=features), as_zuko(flow or bijection)"),
    ("normflows", "no importer; docs/names.md says what its parts are called here"),
    ("torch", "flow.given(y) is a torch Distribution; BijectionTransform(bijection, *conditions)"),
    ("pyro-ppl", "as_pyro(flow, y) is what pyro.sample takes"),
    ("sbi", "sbi_density_estimator(), the density_estimator of NPE"),
    ("scikit-learn", "FlowDensity(), a density estimator"),
    ("onnx", "export(flow, what, to='onnx', path=...), with onnxscript; to='torch' and 'aoti' need torch alone"),
    ("onnxruntime", "load_exported('flow.onnx')"),
    (
        "huggingface_hub",
        "flow.push_to_hub(name), fk.load('hf://owner/name/file'), hub.prepare_folder(flow, folder)",
    ),
)


def main() -> None:
    """Print one line for each friend."""
    for package, offers in FRIENDS:
        try:
            found = version(package)
        except PackageNotFoundError:
            found = f"not installed (python -m pip install {package})"
        print(f"{package} {found}: {offers}")


if __name__ == "__main__":
    main()
