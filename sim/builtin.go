package sim

import (
	"embed"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

//go:embed scenarios/*.txt
var scenarios embed.FS

// Builtin are the names of the scenarios that the program carries, sorted.
func Builtin() []string {
	entries, err := scenarios.ReadDir("scenarios")
	if err != nil {
		panic(err) // it is part of the program
	}
	names := make([]string, len(entries))
	for i, entry := range entries {
		names[i] = strings.TrimSuffix(entry.Name(), ".txt")
	}
	slices.Sort(names)
	return names
}

func builtin(name string) (text string, known bool) {
	content, err := scenarios.ReadFile("scenarios/" + strings.TrimSuffix(name, ".txt") + ".txt")
	return string(content), err == nil
}

func unknownScenario(name string) error {
	if meant := nearest(name, Builtin()); meant != "" {
		return fmt.Errorf("there is no file and no built-in scenario %q (did you mean %q?); `peer sim list` shows what there is", name, meant)
	}
	return fmt.Errorf("there is no file and no built-in scenario %q; `peer sim list` shows what there is", name)
}

// Source is the text of a built-in scenario, or of a file.
func Source(name string) (string, error) {
	if text, known := builtin(name); known {
		return text, nil
	}
	content, err := os.ReadFile(name)
	if errors.Is(err, os.ErrNotExist) {
		return "", unknownScenario(name)
	}
	return string(content), err
}
