package podnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// setSysctl sets a value below net in the network namespace of the calling thread.
func setSysctl(key, value string) error {
	path := filepath.Join("/proc/sys/net", key)
	if have, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(have)) == value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set net/%s to %s: %w", key, value, err)
	}
	return nil
}

// hardenLink sets what a pod's link needs before it is up.
func hardenLink(name string) error {
	for _, s := range []struct{ key, value string }{
		// Packets are accepted only from the address that is routed through the link: the pod's own.
		{"ipv4/conf/" + name + "/rp_filter", "1"},
		// A pod that reaches itself through a Service comes and goes by one link; that is no detour to tell it about.
		{"ipv4/conf/" + name + "/send_redirects", "0"},
		// No link-local addresses: they would be a way around everything above.
		{"ipv6/conf/" + name + "/disable_ipv6", "1"},
	} {
		if err := setSysctl(s.key, s.value); err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			return err
		}
	}
	return nil
}
