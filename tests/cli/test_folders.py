"""Runs over folders: the files they find, the forms of results, and where results go."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest

import gitfast
from gitfast.cli import main
from gitfast.pipeline.folders.records import TextEdit

from support.processes import PYTHON
from support.tiny_checkpoint import random_image

COMMAND = [*PYTHON, "-m", "gitfast", "caption"]


@pytest.fixture(scope="module")
def model(checkpoint_folder):
    return gitfast.load(checkpoint_folder)


@pytest.fixture
def run(capsys, checkpoint_folder):
    """Captions or answers: (exit code, stdout, stderr)."""

    def run_command(*arguments: object, command: str = "caption") -> tuple[int, str, str]:
        code = main([command, "--model", str(checkpoint_folder), *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestJsonLines:
    def test_a_metadata_file(self, run, model, photos, image_files):
        out = photos / "metadata.jsonl"
        code, printed, _ = run("-r", photos, "--out", out)
        assert (code, printed) == (1, "")  # one is damaged
        found = records(out)
        assert [r["file_name"] for r in found] == ["0.png", "1.png", "3.png", "4.png", "within/2.png"]
        texts = {file.name: model.caption(file).text for file in image_files}
        assert [r["text"] for r in found] == [texts[Path(r["file_name"]).name] for r in found]

    def test_a_second_run_does_what_is_left(self, run, photos):
        out = photos / "metadata.jsonl"
        run(photos, "--out", out)
        before = out.read_bytes()
        random_image(9).save(photos / "9.png")
        _, _, messages = run(photos, "--out", out)
        assert "1 written, 4 done before, 1 failed" in messages
        assert out.read_bytes().startswith(before)
        assert [r["file_name"] for r in records(out)] == ["0.png", "1.png", "3.png", "4.png", "9.png"]

    def test_errors_apart(self, run, photos):
        out, errors = photos / "metadata.jsonl", photos / "errors.jsonl"
        arguments = (photos, "--out", out, "--errors", errors)
        assert run(*arguments)[0] == 1
        (record,) = records(errors)
        assert record["file_name"] == "bad.png"
        assert record["error"].startswith(f"{photos / 'bad.png'}: not an image")
        code, _, messages = run(*arguments)
        assert (code, len(records(errors))) == (1, 1)
        assert "0 written, 4 done before, 1 failed before; --retry-errors tries them" in messages
        assert run(*arguments, "--retry-errors")[0] == 1
        assert len(records(errors)) == 1
        random_image(7).save(photos / "bad.png")
        code, _, messages = run(*arguments, "--retry-errors")
        assert (code, errors.read_bytes()) == (0, b"")
        assert records(out)[-1]["file_name"] == "bad.png"

    def test_questions(self, run, model, photos):
        out = photos / "answers.jsonl"
        one, two = ("-q", "how many?"), ("-q", "what color?")
        run(photos, "--out", out, *one, command="answer")
        assert [r["question"] for r in records(out)] == ["how many?"] * 4
        run(photos, "--out", out, *one, *two, command="answer")
        found = records(out)
        assert [r["question"] for r in found[4:]] == ["what color?"] * 4
        assert found[4]["text"] == model.answer(photos / "0.png", "what color?").text

    def test_fail_fast(self, run, photos):
        out = photos / "metadata.jsonl"
        code, _, _ = run(photos, "--out", out, "--fail-fast", "--batch-size", 1)
        assert code == 1
        assert len(records(out)) == 4, "those before it are kept"
        (photos / "0.png").write_bytes(b"")
        out.unlink()
        assert run(photos, "--out", out, "--fail-fast")[0] == 1
        assert out.read_bytes() == b""

    @pytest.mark.parametrize("kept", [10, 1, 0])
    def test_an_unfinished_last_line_is_cut(self, run, photos, kept):
        (photos / "bad.png").unlink()
        out = photos / "metadata.jsonl"
        run(photos, "--out", out)
        whole = out.read_bytes()
        lines = whole.splitlines(keepends=True)
        out.write_bytes(b"".join(lines[:3]) + lines[3][:kept])
        assert run(photos, "--out", out)[0] == 0
        assert out.read_bytes() == whole
        out.write_bytes(whole.removesuffix(b"\n"))  # as an editor may leave it
        assert run(photos, "--out", out)[0] == 0
        assert out.read_bytes() == whole

    @pytest.mark.parametrize("content", [b"notes of mine", b"notes of mine\n", b'{"other": 1}\n', b"[1]\n"])
    def test_a_file_of_something_else_is_left_alone(self, run, photos, content):
        out = photos / "metadata.jsonl"
        out.write_bytes(content)
        code, _, messages = run(photos, "--out", out)
        assert (code, out.read_bytes()) == (1, content)
        assert f"{out}: " in messages
        assert "no result" in messages

    def test_existing_files_are_replaced_when_a_run_is_complete(self, run, photos):
        (photos / "bad.png").unlink()
        out = photos / "metadata.jsonl"
        run(photos, "--out", out)
        before = records(out)
        run(photos, "--out", out, "--existing", "append", "--prefix", "again ")
        joined = [f"{r['text']}, again {r['text']}" for r in before]
        assert [r["text"] for r in records(out)] == joined
        (photos / "0.png").unlink()
        run(photos, "--out", out, "--existing", "prepend", "--separator", " | ")
        texts = {r["file_name"]: r["text"] for r in records(out)}
        assert texts == {"0.png": joined[0]} | {
            r["file_name"]: f"{r['text']} | {text}" for r, text in zip(before[1:], joined[1:], strict=True)
        }
        run(photos, "--out", out, "--existing", "overwrite")
        assert records(out) == before[1:]
        assert sorted(path.name for path in photos.iterdir() if "part" in path.name) == []

    def test_two_runs_do_not_write_one_file(self, run, photos):
        out = photos / "metadata.jsonl"
        from gitfast.pipeline.folders.outputs import LineFile
        from gitfast.pipeline.folders.records import JsonRecords

        holder = LineFile(str(out), JsonRecords())
        code, _, messages = run(photos, "--out", out)
        assert code == 1
        assert "another run is writing it" in messages
        holder.close(complete=True)


class TestTextFiles:
    def test_two_runs_do_not_join_the_same_texts(self, run, photos):
        """Parts of the inputs are no hindrance to one another."""
        from gitfast.pipeline.folders.outputs import Journal

        assert run(photos, "--output", "txt")[0] == 1
        before = (photos / "0.png").with_suffix(".txt").read_text()
        holder = Journal(str(photos / ".gitfast-append-part"))
        code, _, messages = run(photos, "--output", "txt", "--existing", "append")
        assert code == 1
        assert "another run is writing it" in messages
        assert (photos / "0.png").with_suffix(".txt").read_text() == before
        for part in ("1/2", "2/2"):
            assert "another run" not in run(photos, "--output", "txt", "--existing", "append", "--shard", part)[2]
        assert (photos / "0.png").with_suffix(".txt").read_text() != before
        holder.close(remove=True)

    def test_beside_the_images(self, run, model, photos):
        assert run("-r", photos, "--output", "txt")[0] == 1
        for file in (photos / "0.png", photos / "within" / "2.png"):
            assert file.with_suffix(".txt").read_text() == model.caption(file).text + "\n"
        assert not (photos / "bad.txt").exists()
        (photos / "0.txt").write_text("by hand")
        run(photos, "--output", "txt")
        assert (photos / "0.txt").read_text() == "by hand"
        run(photos, "--output", "txt", "--existing", "append")
        assert (photos / "0.txt").read_text() == f"by hand, {model.caption(photos / '0.png')}\n"
        run(photos, "--output", "txt", "--existing", "overwrite", "--caption-extension", "caption")
        assert (photos / "0.caption").read_text() == model.caption(photos / "0.png").text + "\n"

    def test_in_a_folder(self, run, photos, tmp_path):
        run("-r", photos, "--output", "txt", "--out", tmp_path / "captions")
        found = sorted(str(path.relative_to(tmp_path / "captions")) for path in tmp_path.rglob("captions/**/*.txt"))
        assert found == ["0.txt", "1.txt", "3.txt", "4.txt", "within/2.txt"]

    def test_names_that_differ_in_the_extension_only(self, run, photos):
        random_image(8).save(photos / "0.bmp")
        for _ in range(2):
            code, _, messages = run(photos, "--output", "txt")
            assert code == 1
            assert f"{photos / '0.png'}: another input has the same name but for its extension" in messages

    def test_what_a_shard_names_stays_in_the_folder(self, run, tmp_path, image_files):
        shard = write_tar(tmp_path / "x.tar", {"../../out.png": image_files[0].read_bytes()})
        out = tmp_path / "a" / "b" / "captions"
        assert run(shard, "--output", "txt", "--out", out)[0] == 0
        assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.txt")] == ["a/b/captions/out.txt"]
        assert run(shard, "--output", "txt")[0] == 1, "without a folder there is nowhere to write"

    def test_an_append_that_was_killed_joins_nothing_twice(self, run, model, photos, monkeypatch):
        from gitfast.pipeline.folders import outputs

        text = model.caption(photos / "0.png").text
        (photos / "bad.png").unlink()
        for name in "0134":
            (photos / f"{name}.txt").write_text("old\n")
        writes = []
        original = outputs._write_whole

        def die_at_the_third(target: str, data: bytes) -> None:
            writes.append(target)
            if len(writes) == 3:
                raise SystemExit  # after its note, before its file
            original(target, data)

        monkeypatch.setattr(outputs, "_write_whole", die_at_the_third)
        with pytest.raises(SystemExit):
            run(photos, "--output", "txt", "--existing", "append")
        monkeypatch.undo()
        assert run(photos, "--output", "txt", "--existing", "append")[0] == 0
        assert (photos / "0.txt").read_text() == f"old, {text}\n"
        assert all((photos / f"{name}.txt").read_text().count("old") == 1 for name in "0134")
        run(photos, "--output", "txt", "--existing", "append")
        assert (photos / "0.txt").read_text() == f"old, {text}, {text}\n", "a complete run is not continued"


class TestParquet:
    def test_written_continued_and_read(self, run, photos, tmp_path):
        pq = pytest.importorskip("pyarrow.parquet")
        out, lines = tmp_path / "captions.parquet", tmp_path / "captions.jsonl"
        (photos / "4.png").rename(tmp_path / "4.png")
        run(photos, "--out", out)
        (tmp_path / "4.png").rename(photos / "4.png")
        _, _, messages = run(photos, "--out", out)
        assert "1 written, 3 done before" in messages
        run(photos, "--out", lines)
        columns = ["file_name", "text", "score", "finish_reason"]
        assert pq.read_table(out, columns=columns).to_pylist() == records(lines)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["captions.jsonl", "captions.parquet", "photos"]

    @pytest.mark.parametrize("as_struct", [False, True])
    def test_as_input(self, run, image_files, tmp_path, as_struct):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        images: list = [file.read_bytes() for file in image_files[:3]]
        if as_struct:
            images = [{"bytes": image, "path": None} for image in images]
        images.insert(1, None)
        pq.write_table(pa.table({"id": [5, 6, 7, 8], "image": images}), tmp_path / "x.parquet")
        _, printed, _ = run(tmp_path / "x.parquet", "--json")
        found = [json.loads(line) for line in printed.splitlines()]
        assert [r["file_name"] for r in found] == [f"{tmp_path}/x.parquet/{row}" for row in range(4)]
        assert found[1]["error"].endswith("x.parquet/1: holds no image")
        _, printed, _ = run(*image_files[:3], "--json")
        texts = [json.loads(line)["text"] for line in printed.splitlines()]
        assert [r["text"] for r in found if "text" in r] == texts

    def test_damaged_and_without_images(self, run, tmp_path):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"id": [5, 6]}), tmp_path / "ids.parquet")
        (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
        code, _, messages = run(tmp_path / "ids.parquet", tmp_path / "bad.parquet")
        assert code == 1
        assert "ids.parquet: no column holds images: id" in messages
        assert "bad.parquet: not a parquet file, or damaged" in messages


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


class TestShards:
    @pytest.mark.parametrize(("name", "mode"), [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.tgz", "w:gz")])
    def test_tar(self, run, model, image_files, tmp_path, name, mode):
        files = {f"{file.stem}.png": file.read_bytes() for file in image_files} | {"0.json": b"{}", "bad.png": b"no"}
        shard = write_tar(tmp_path / name, files, mode)
        out = tmp_path / "out.jsonl"
        code, _, messages = run(shard, "--out", out)
        assert code == 1
        assert messages.startswith(f"gitfast: {shard}/bad.png: not an image")
        found = records(out)
        assert [r["file_name"] for r in found] == [f"{shard}/{file.name}" for file in image_files]
        assert [r["text"] for r in found] == [model.caption(file).text for file in image_files]
        lines = out.read_bytes().splitlines(keepends=True)
        out.write_bytes(b"".join(lines[:2]))
        run(shard, "--out", out)
        assert out.read_bytes() == b"".join(lines)

    def test_a_tar_that_breaks_off_gives_what_is_before(self, run, image_files, tmp_path):
        shard = write_tar(tmp_path / "x.tar", {f"{i}.png": image_files[0].read_bytes() for i in range(3)})
        shard.write_bytes(shard.read_bytes()[:1300])
        code, printed, messages = run(shard, "--json")
        assert code == 1
        assert "x.tar: not a tar file, or damaged (after 0.png)" in messages
        assert "text" in json.loads(printed.splitlines()[0])


class TestWalk:
    def test_what_is_passed_by_is_told(self, run, photos):
        (photos / "notes.txt").write_text("")
        (photos / "b.json").write_text("")
        (photos / "c.json").write_text("")
        os.mkfifo(photos / "pipe.png")
        (photos / "gone.png").symlink_to("nowhere")
        _, _, messages = run("-r", photos)
        assert "skipped 3 files of other kinds: .json (2), .txt (1)" in messages
        assert "skipped 2 names of pipes, devices or broken links" in messages

    def test_pipes_are_not_waited_for(self, run, tmp_path):
        os.mkfifo(tmp_path / "pipe.png")
        code, _, messages = run(tmp_path / "pipe.png")
        assert (code, messages) == (1, f"gitfast: {tmp_path / 'pipe.png'}: not a regular file\n")

    def test_folders_that_cannot_be_read(self, run, photos, monkeypatch):
        scandir = os.scandir

        def refuse(path):
            if str(path).endswith("within"):
                raise PermissionError(13, "Permission denied", path)
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        (photos / "bad.png").unlink()
        code, _, messages = run("-r", photos)
        assert code == 1
        assert f"gitfast: {photos / 'within'}: Permission denied\n" in messages

    def test_links_to_folders(self, run, photos, tmp_path):
        (photos / "bad.png").unlink()
        (photos / "link").symlink_to(photos / "within")
        (photos / "within" / "round").symlink_to(photos)
        _, printed, messages = run("-r", photos)
        assert len(printed.splitlines()) == 5
        assert "skipped 2 links to folders; --follow-links" in messages
        code, printed, messages = run("-r", photos, "--follow-links")
        assert (code, len(printed.splitlines())) == (0, 6)

    @pytest.mark.parametrize("separator", ["\n", "\0"])
    def test_lists_of_files(self, run, photos, tmp_path, separator):
        names = [str(photos / "1.png"), str(photos / "within"), str(photos / "0.png")]
        if separator == "\0":
            odd = photos / "a\tb\nc.png"
            (photos / "3.png").rename(odd)
            names.append(str(odd))
        listed = tmp_path / "list"
        listed.write_text(separator.join(names))
        code, printed, _ = run("--files-from", listed, "--json")
        names[1] = str(photos / "within" / "2.png")
        assert (code, [json.loads(line)["file_name"] for line in printed.splitlines()]) == (0, names)

    def test_shards_of_a_folder_are_its_parts(self, run, photos, monkeypatch):
        monkeypatch.chdir(photos.parent)  # shards are chosen by name: the same ones every time
        whole = run("-r", photos.name, "--json")[1].splitlines()
        parts = [run("-r", photos.name, "--json", "--shard", f"{i}/3")[1].splitlines() for i in (1, 2, 3)]
        assert sorted(line for part in parts for line in part) == sorted(whole)
        assert max(map(len, parts)) < len(whole)

    def test_odd_names_survive(self, run, photos, tmp_path):
        names = ["tab\t.png", "line\nend.png", "esc\x1b[31m.png", os.fsdecode(b"\xff\xfe.png"), "back\\slash.png"]
        folder = tmp_path / "odd"
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes((photos / "0.png").read_bytes())
        (folder / "bad\x1b[2J\n.png").write_bytes(b"")
        out = tmp_path / "out.jsonl"
        _, _, messages = run(folder, "--out", out)
        assert sorted(r["file_name"] for r in records(out)) == sorted(names)
        assert "bad\\x1b[2J\\n.png: " in messages
        assert "\x1b" not in messages
        assert "5 done before" in run(folder, "--out", out)[2]
        _, printed, _ = run(folder)
        lines = printed.splitlines()
        assert (len(lines), "\x1b" in printed) == (5, False)
        lines_file = tmp_path / "out.tsv"
        run(folder, "--out", lines_file)
        assert "5 done before" in run(folder, "--out", lines_file)[2]

    def test_sd_scripts_spelling(self, run, model, photos):
        arguments = ("--batch_size", 2, "--caption_extension=.cap", "--max_length", 3, "--num_beams", 2, "--recursive")
        run(photos, "--output", "txt", *arguments)
        expected = model.caption(photos / "0.png", num_beams=2, max_new_tokens=3).text
        assert (photos / "0.cap").read_text() == expected + "\n"


class TestText:
    def test_prefix_suffix_and_removed_words(self, run, model, photos):
        text = model.caption(photos / "0.png").text
        word = text.split()[0]
        edits = ("--prefix", "a photo: ", "--suffix", " (c)", "--remove-words", rf"\b{word}\b")
        printed = run(photos / "0.png", *edits)[1]
        edit = TextEdit(prefix="a photo: ", suffix=" (c)", remove=[re.compile(rf"\b{word}\b")])
        assert printed == edit(text) + "\n"
        assert word not in edit(text).replace("a photo: ", "").split()

    def test_options_of_generation(self, run, model, photos):
        drawn = ("--do-sample", "--seed", 3, "--temperature", 1.5, "--top-k", 5, "--num-return-sequences", 3)
        expected = model.caption(
            photos / "0.png", do_sample=True, seed=3, temperature=1.5, top_k=5, num_return_sequences=3
        )
        (record,) = [json.loads(line) for line in run(photos / "0.png", "--json", *drawn)[1].splitlines()]
        assert record["text"] == expected.text
        assert [other["text"] for other in record["alternatives"]] == [other.text for other in expected.alternatives]


class TestLimits:
    def test_they_bound_what_is_read(self, run, photos):
        (photos / "bad.png").unlink()
        assert run(photos / "0.png")[0] == 0
        code, _, messages = run(photos / "0.png", "--limit", "max-pixels=1K")
        assert code == 1
        assert "40 x 36 pixels; at most 1000 are allowed" in messages
        assert run(photos / "0.png", "--limit", "max_pixels=1440")[0] == 0

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("max_pixel=5", "did you mean max_pixels"),
            ("max_pixels=many", "max_pixels: expected a positive number such as 200M, got 'many'"),
            ("max_pixels=0", "expected a positive"),
            ("max_pixels=1e400", "expected a positive"),
            ("max_aspect_ratio=nan", "expected a positive"),
            ("max_pixels", "expected a positive"),
        ],
    )
    def test_wrong_ones_are_named(self, text, message, capsys):
        with pytest.raises(SystemExit) as end:
            main(["caption", "x", "--limit", text])
        assert end.value.code == 2
        assert message in capsys.readouterr().err


class TestUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["x", "--output", "parquet"],
            ["x", "--retry-errors"],
            ["x", "--shard", "0/3"],
            ["x", "--shard", "4/3"],
            ["x", "--remove-words", "("],
            ["x", "--existing", "keep"],
            ["x", "--caption-extension", "a/b"],
            ["x", "--json", "--output", "txt"],
            ["x", "--temperature", "hot"],
            ["x", "--out", "same", "--errors", "same"],
        ],
        ids=" ".join,
    )
    def test_wrong_usage(self, arguments, capsys):
        with pytest.raises(SystemExit) as end:
            main(["caption", *arguments])
        assert end.value.code == 2
        assert "usage: gitfast caption" in capsys.readouterr().err
