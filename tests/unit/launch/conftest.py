"""The commands compile the pipeline each time they run, which is half a second: here once for all tests."""

import pytest

from free2ds_common.launch.package import Package


@pytest.fixture(scope="session", autouse=True)
def _compiled_once():
    compile_package, made = Package.compile, {}

    def compile_once(pipeline):
        if id(pipeline) not in made:
            # The pipeline is kept too, so that its id stays its own.
            made[id(pipeline)] = (pipeline, compile_package(pipeline))
        return made[id(pipeline)][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Package, "compile", compile_once)
        yield
