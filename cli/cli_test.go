package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// invoke runs one command line and returns what it printed.
func invoke(t *testing.T, parts Parts, args ...string) (string, error) {
	t.Helper()
	var out, complaints bytes.Buffer
	err := run(t.Context(), args, parts, streams{strings.NewReader(""), &out, &complaints})
	return out.String() + complaints.String(), err
}

// joinWith parses a join and returns the flags the peer would get.
func joinWith(t *testing.T, args ...string) (Join, error) {
	t.Helper()
	var got Join
	_, err := invoke(t, Parts{Join: func(_ context.Context, flags Join) error {
		got = flags
		return nil
	}}, append([]string{"join"}, args...)...)
	return got, err
}

func TestJoinFlagsReachThePeer(t *testing.T) {
	t.Setenv("SHOAL_DATA_DIR", "/from/environment")
	got, err := joinWith(t, "10.0.0.1", "node-b:7000", "--token", "t", "--name", "n", "--advertise", "10.0.0.9",
		"--listen", "10.0.0.9:7444", "--cluster-cidr", "10.1.0.0/16", "--service-cidr", "10.2.0.0/16",
		"--containerd", "/run/containerd.sock", "--zone", "z", "--label", "a=1", "--label", "b=2", "--cgroup-parent", "lab/p1",
		"--history-bytes", "64MiB", "--history-age", "1h", "--image-gc-high-threshold", "70", "--image-gc-low-threshold", "60", "--voters", "5")
	if err != nil {
		t.Fatal(err)
	}
	if got.DataDir != "/from/environment" || strings.Join(got.Addresses, " ") != "10.0.0.1 node-b:7000" || got.Token != "t" ||
		got.Name != "n" || got.Advertise != "10.0.0.9" || got.Listen != (listenAddress{"10.0.0.9", 7444}) ||
		got.ClusterCIDR != "10.1.0.0/16" || got.ServiceCIDR != "10.2.0.0/16" || got.Containerd != "/run/containerd.sock" ||
		got.Zone != "z" || got.Label["a"] != "1" || got.Label["b"] != "2" || got.CgroupParent != "lab/p1" ||
		got.HistoryBytes != 64<<20 || got.HistoryAge != time.Hour || got.ImageGCHigh != 70 || got.ImageGCLow != 60 || got.Voters != 5 {
		t.Errorf("flags were lost: %+v", got)
	}
}

func TestJoinNeedsNoFlag(t *testing.T) {
	t.Setenv("SHOAL_DATA_DIR", "")
	os.Unsetenv("SHOAL_DATA_DIR")
	got, err := joinWith(t)
	if err != nil {
		t.Fatal(err)
	}
	if got.DataDir != "/var/lib/shoal" || got.Listen.Port != 7443 || got.LogLevel != "info" || len(got.Addresses) != 0 || got.Version == "" ||
		got.HistoryBytes != 32<<20 || got.HistoryAge != 10*time.Minute || got.ImageGCHigh != 85 || got.ImageGCLow != 80 {
		t.Errorf("defaults: %+v", got)
	}
}

func TestJoinRefusesUselessHistories(t *testing.T) {
	for _, args := range [][]string{
		{"--history-bytes", "3MiB"}, {"--history-bytes", "-1"}, {"--history-bytes", "many"}, {"--history-bytes", "9999999999GiB"},
		{"--history-age", "30s"}, {"--history-age", "long"},
	} {
		if _, err := joinWith(t, args...); err == nil || !strings.Contains(err.Error(), "history") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestJoinRefusesSenselessImageThresholds(t *testing.T) {
	for _, args := range [][]string{
		{"--image-gc-high-threshold", "80"}, {"--image-gc-high-threshold", "101"}, {"--image-gc-low-threshold", "-1"}, {"--image-gc-low-threshold", "90"},
	} {
		if _, err := joinWith(t, args...); err == nil || !strings.Contains(err.Error(), "image-gc") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

func TestConfigurationFile(t *testing.T) {
	const inYAML = `
# a comment
name: web-1
peer: [10.0.0.1, "10.0.0.2:7000"]
listen: 7000
label:
  disk: ssd
data-dir: /srv/shoal
`
	const inTOML = `
name = "web-1"
peer = ["10.0.0.1", "10.0.0.2:7000"]
listen = 7000
data-dir = "/srv/shoal"
[label]
disk = "ssd"
`
	for name, text := range map[string]string{"peer.yaml": inYAML, "peer.toml": inTOML} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), name)
			write(t, path, text)
			got, err := joinWith(t, "--config", path, "--name", "from-the-command-line")
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != "from-the-command-line" || strings.Join(got.Addresses, " ") != "10.0.0.1 10.0.0.2:7000" ||
				got.Listen.Port != 7000 || got.Label["disk"] != "ssd" || got.DataDir != "/srv/shoal" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestExampleConfiguration(t *testing.T) {
	t.Setenv("SHOAL_DATA_DIR", "/elsewhere")
	got, err := joinWith(t, "--config", "../examples/peer.yaml")
	if err != nil || got.DataDir != "/var/lib/shoal" || got.Listen.Port != 7443 {
		t.Errorf("%v: %+v", err, got)
	}
	text, err := os.ReadFile("../examples/peer.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// What stands there behind a '# ' as a proposal must be valid too.
	proposals := regexp.MustCompile(`(?m)^# ((  )?[a-z-]+:.*)$`).ReplaceAllString(string(text), "$1")
	path := filepath.Join(t.TempDir(), "peer.yaml")
	write(t, path, proposals)
	got, err = joinWith(t, "--config", path)
	if err != nil || got.Name != "web-1" || len(got.Addresses) != 2 || got.Zone != "rack-a" || got.Label["disk"] != "ssd" || got.Token == "" {
		t.Errorf("%v: %+v", err, got)
	}
}

func TestConfigurationFileErrorsNameTheLine(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"unknown key", "c.yaml", "name: a\nnmae: b\n", "line 2: there is no flag --nmae"},
		{"unknown key in TOML", "c.toml", "name = 'a'\n\nnmae = 'b'\n", "line 3: there is no flag --nmae"},
		{"unknown table in TOML", "c.toml", "name = 'a'\n[server]\nport = 1\n", "line 2: there is no flag --server"},
		{"not YAML", "c.yaml", "name: [\n", "line"},
		{"not TOML", "c.toml", "name = \n", "line 1"},
		{"a list", "c.yaml", "- name\n", "line 1: flags by name are expected"},
		{"nested too deep", "c.yaml", "name: a\nlabel: {a: {b: c}}\n", "line 2: label must be"},
		{"empty value", "c.yaml", "name:\n", "line 1: name has no value"},
		{"twice", "c.yaml", "name: a\nname: b\n", "line 2: name is given twice"},
		{"a file in a file", "c.yaml", "config: other.yaml\n", "line 1: there is no flag --config"},
		{"bad value", "c.yaml", "listen: 99999\n", "is not PORT or IP:PORT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), c.file)
			write(t, path, c.text)
			_, err := joinWith(t, "--config", path)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v does not say %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
	if _, err := joinWith(t, "--config", "/nowhere/peer.yaml"); err == nil || !strings.Contains(err.Error(), "/nowhere/peer.yaml") {
		t.Errorf("a missing file is not named: %v", err)
	}
}

func TestUsageErrorsPointToTheHelp(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"join --tokn x", "peer join --help"},
		{"join --listen x", "not PORT or IP:PORT"},
		{"flyaway", "peer --help"},
		{"token create extra", "peer token create --help"},
	} {
		_, err := invoke(t, Parts{}, strings.Fields(c.line)...)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("peer %s: %v, want %q", c.line, err, c.want)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for line, want := range map[string]string{
		"--help":        "join",
		"join --help":   "--cluster-cidr",
		"version":       "shoal dev (Kubernetes ",
		"status --help": "--output",
	} {
		out, err := invoke(t, Parts{}, strings.Fields(line)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("peer %s: error %v, output %q", line, err, out)
		}
	}
}

func TestVerbFirst(t *testing.T) {
	for line, want := range map[string]string{
		"get pods -A":                "get pods -A",
		"-n kube-system get pods":    "get -n kube-system pods",
		"-n logs logs web":           "logs -n logs web",
		"--data-dir /x get pods":     "--data-dir /x get pods",
		"--kubeconfig f get -o yaml": "get --kubeconfig f -o yaml",
		"--help":                     "--help",
		"--nonsense":                 "--nonsense",
	} {
		if got := strings.Join(verbFirst(strings.Fields(line)), " "); got != want {
			t.Errorf("peer %s became %q, want %q", line, got, want)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
