"""What image-to-image translation needs around a flow: colour spaces, photographs, upsampling, data, metrics, pictures.

Its modules are imported by name (`from flowkit_cinn.translation.images import read_photograph`), so that each brings
only the packages that it needs.
"""
