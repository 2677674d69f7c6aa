package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"shoal/sim/history"
)

// drawAll leaves a picture of the whole history beside it, and of each object whose operations have no order.
func drawAll(dir string, h *history.History, violations []history.Violation) error {
	err := writeFile(filepath.Join(dir, "history.html"), func(w io.Writer) error { return history.Draw(w, h, violations) })
	if err != nil {
		return err
	}
	drawn := map[string]bool{}
	for _, v := range violations {
		if v.Checker != history.CheckLinearizable || drawn[v.Key] {
			continue
		}
		drawn[v.Key] = true
		name := fmt.Sprintf("linearizable-%s.html", strings.ReplaceAll(v.Key, "/", "-"))
		if err := writeFile(filepath.Join(dir, name), func(w io.Writer) error { return history.Visualize(w, h, v.Key, time.Minute) }); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes a file and has it written.
func writeFile(path string, write func(io.Writer) error) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := write(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
