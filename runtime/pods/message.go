package pods

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Bounds of termination messages, as documented:
// https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
const (
	messageMaxBytes     = 4096
	messageLogMaxBytes  = 2048
	messageLogMaxLines  = 80
	messageLogReadBytes = 64 << 10 // enough raw log for the above
)

// terminationMessage reads what a container left: its message file, or the end of its log when it failed and its policy says so.
func terminationMessage(c *corev1.Container, cur *ContainerState) string {
	if path := cur.Labels[labelMessagePath]; path != "" {
		if text, err := readHead(path, messageMaxBytes); err == nil && len(text) > 0 {
			return string(text)
		}
	}
	if c == nil || c.TerminationMessagePolicy != corev1.TerminationMessageFallbackToLogsOnError || cur.ExitCode == 0 {
		return ""
	}
	return logTail(cur.LogPath)
}

func readHead(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// logTail is the end of a CRI log, without its prefixes.
func logTail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	partial := false
	if info, err := f.Stat(); err == nil && info.Size() > messageLogReadBytes {
		partial = true
		if _, err := f.Seek(-messageLogReadBytes, io.SeekEnd); err != nil {
			return ""
		}
	}
	var lines []string
	reader := bufio.NewReader(f)
	for {
		line, err := reader.ReadBytes('\n')
		if partial { // the first line begins in the middle
			partial = false
		} else if f := bytes.SplitN(line, []byte(" "), 4); len(f) == 4 {
			text := string(f[3])
			if string(f[2]) == "P" {
				text = strings.TrimSuffix(text, "\n")
			}
			lines = append(lines, text)
		}
		if err != nil {
			break
		}
	}
	text := strings.Join(lines[max(0, len(lines)-messageLogMaxLines):], "")
	return text[max(0, len(text)-messageLogMaxBytes):]
}
