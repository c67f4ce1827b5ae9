"""Decoders' lines on stderr: taken from the right thread, and nothing else taken."""

import os
import threading
import time

import cv2

from tests.make_scans import JPEG, corrupted, opened, read_all, write_images


class TestTerminal:
    def test_lines_of_others_are_passed_on(self, tmp_path, capfd, monkeypatch):
        """What another part of the program prints to stderr while a slice is decoded is neither lost nor a finding."""
        decode = cv2.imdecode

        def decode_while_others_print(data, flags):
            os.write(2, b"listing: 40% 2/5 scans\n")
            return decode(data, flags)

        monkeypatch.setattr(cv2, "imdecode", decode_while_others_print)
        scan = opened(write_images(tmp_path, ["0.jpg"]))
        scan.read(0)
        assert not scan.findings
        assert capfd.readouterr().err == "listing: 40% 2/5 scans\n"

    def test_threads_do_not_mix_up_findings(self, tmp_path, capfd, monkeypatch):
        decode = cv2.imdecode

        def slow_decode(data, flags):
            time.sleep(0.001)  # so that the other thread comes in between
            image = decode(data, flags)
            time.sleep(0.001)
            return image

        monkeypatch.setattr(cv2, "imdecode", slow_decode)
        (tmp_path / "bad").mkdir()
        for i in range(20):
            (tmp_path / "bad" / f"{i}.jpg").write_bytes(corrupted(JPEG))
        scans = [opened(write_images(tmp_path / "good", [f"{i}.jpg" for i in range(20)])), opened(tmp_path / "bad")]
        threads = [threading.Thread(target=read_all, args=(scan,)) for scan in scans]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [len(scan.findings) for scan in scans] == [0, 20]
        os.write(2, b"stderr is back")
        assert capfd.readouterr().err == "stderr is back"
