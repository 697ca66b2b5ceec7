"""Go's text/template, run on a Modelfile as Ollama runs it."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

# What Ollama does with a Modelfile's TEMPLATE and SYSTEM (server/prompt.go, template/template.go).
PROGRAM = """
package main

import ("encoding/json"; "os"; "text/template")

type Message struct { Role, Content string }

func main() {
	var in struct { Template, System string; Conversations [][]Message }
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil { panic(err) }
	parsed := template.Must(template.New("").Option("missingkey=zero").Parse(in.Template))
	var out []string
	for _, messages := range in.Conversations {
		if in.System != "" && messages[0].Role != "system" {
			messages = append([]Message{{"system", in.System}}, messages...)
		}
		var text Writer
		system := ""
		if messages[0].Role == "system" { system = messages[0].Content }
		values := map[string]any{"Messages": messages, "System": system}
		if err := parsed.Execute(&text, values); err != nil { panic(err) }
		out = append(out, string(text))
	}
	json.NewEncoder(os.Stdout).Encode(out)
}

type Writer []byte
func (w *Writer) Write(p []byte) (int, error) { *w = append(*w, p...); return len(p), nil }
"""


def compiled(folder: Path) -> Callable[[str, list], list[str]]:
    """A function (Modelfile, conversations) -> prompts, compiled in `folder`; skips the test without Go."""
    go = shutil.which("go")
    if not go:
        pytest.skip("no Go on PATH to render Go templates with (apt install golang-go)")
    (folder / "main.go").write_text(PROGRAM)
    subprocess.run([go, "build", "-o", "render", "main.go"], cwd=folder, check=True)

    def render(text: str, conversations: list) -> list[str]:
        request = {"Template": between(text, 'TEMPLATE """'), "System": between(text, '\nSYSTEM """')}
        talks = [[{"Role": m["role"], "Content": m["content"]} for m in talk] for talk in conversations]
        request["Conversations"] = talks
        done = subprocess.run(
            [folder / "render"], input=json.dumps(request), capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    return render


def between(text: str, start: str) -> str:
    return text.partition(start)[2].partition('"""')[0]
