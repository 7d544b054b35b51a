"""References in requests: found with their paths, filled, and left alone where they are of other templates."""

from jobs.pipelines.placeholders import Reference, fill, find_references, has_reference


def test_references_are_found_with_their_paths() -> None:
    request = {"model": "{{ train.fine_tuned_model }}", "metadata": {"of": "{{a.id}} and {{b.id}}"}, "tags": ["{{c}}"]}

    assert list(find_references(request)) == [
        Reference("model", "train", "fine_tuned_model"),
        Reference("metadata.of", "a", "id"),
        Reference("metadata.of", "b", "id"),
        Reference("tags[0]", "c", ""),
    ]


def test_templates_of_items_and_of_chats_are_no_references() -> None:
    request = {"text": "{{ item.question }}{{sample.output_text}}", "training": {"chat_template": "{{ train.id }}"}}

    assert list(find_references(request)) == []
    assert fill(request, {("train", "id"): "ftjob-1"}) == request


def test_known_results_are_filled_in_and_other_text_stays() -> None:
    request = {"ids": ["{{ a.id }}", "{{a.output_file_id}}"], "text": "{{item.x}} of {{a.id}}", "n": 3, "none": None}

    assert fill(request, {("a", "id"): "batch_1"}) == {
        "ids": ["batch_1", "{{a.output_file_id}}"],
        "text": "{{item.x}} of batch_1",
        "n": 3,
        "none": None,
    }


def test_result_that_looks_like_a_reference_stays_as_it_is() -> None:
    assert fill("{{a.id}}", {("a", "id"): "{{b.id}}", ("b", "id"): "batch_2"}) == "{{b.id}}"


def test_text_with_open_braces_takes_no_long_time() -> None:
    assert list(find_references({"text": "{{" * 200_000 + " " * 200_000})) == []
    assert not has_reference("{{ a.id }")
    assert has_reference("x{{a.id}}")
