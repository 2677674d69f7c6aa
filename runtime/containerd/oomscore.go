//go:build linux

package containerd

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/containerd/v2/pkg/cap"
)

// lowestOOMScore returns the lowest oom_score_adj that this process may give:
// -1000, or its own value without CAP_SYS_RESOURCE, since the kernel then only
// lets it be raised. A runtime that tries to go lower dies while it starts the
// container, with a message that says nothing of this.
func lowestOOMScore() (int, error) {
	have, err := cap.Current()
	if err != nil {
		return 0, fmt.Errorf("capabilities: %w", err)
	}
	for _, name := range have {
		if name == "CAP_SYS_RESOURCE" {
			return -1000, nil
		}
	}
	data, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(data)))
}
