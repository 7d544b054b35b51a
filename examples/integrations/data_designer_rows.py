"""Write rows with NeMo Data Designer: `python data_designer_rows.py MODEL`.

OPENAI_BASE_URL and OPENAI_API_KEY name the server.
"""

import os
import sys
import tempfile

import data_designer.config as dd
from data_designer.interface import DataDesigner


def main() -> None:
    provider = dd.ModelProvider(name="nightmill", endpoint=os.environ["OPENAI_BASE_URL"], api_key="OPENAI_API_KEY")
    model = dd.ModelConfig(alias="writer", model=sys.argv[1], provider="nightmill")
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    colours = dd.CategorySamplerParams(values=["blue", "green"])
    builder.add_column(dd.SamplerColumnConfig(name="colour", sampler_type="category", params=colours))
    builder.add_column(
        dd.LLMTextColumnConfig(name="poem", model_alias="writer", prompt="Write two lines on {{ colour }}.")
    )
    with tempfile.TemporaryDirectory() as folder:
        designer = DataDesigner(artifact_path=folder, model_providers=[provider])
        for row in designer.preview(builder, num_records=2).dataset.to_dict("records"):
            print(f"{row['colour']}: {row['poem']}")


if __name__ == "__main__":
    main()
