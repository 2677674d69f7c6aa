package peer

import (
	"strings"
	"testing"
)

// complete is a valid configuration, changed by change, with its defaults.
func complete(t *testing.T, change func(*Config)) Config {
	t.Helper()
	config := Config{Name: "node-1", DataDir: t.TempDir()}
	change(&config)
	config, err := config.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func TestFlagsAreValidated(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // empty: valid
	}{
		{"nothing given", func(*Config) {}, ""},
		{"everything given", func(c *Config) {
			c.Addresses, c.Advertise, c.Listen, c.Zone = []string{"10.0.0.1", "host:7000", "2001:db8::1"}, "10.0.0.2", "0.0.0.0", "a"
			c.ClusterCIDR, c.ServiceCIDR, c.Containerd = "10.1.0.0/16", "10.2.0.0/16", "unix:///run/containerd/containerd.sock"
		}, ""},
		{"name with capitals", func(c *Config) { c.Name = "Node_1" }, "--name"},
		{"name too long", func(c *Config) { c.Name = strings.Repeat("a", 64) }, "--name"},
		{"port", func(c *Config) { c.Port = 70000 }, "--listen"},
		{"listen", func(c *Config) { c.Listen = "here" }, "--listen"},
		{"advertise no IP", func(c *Config) { c.Advertise = "node-1" }, "--advertise"},
		{"advertise 0.0.0.0", func(c *Config) { c.Advertise = "0.0.0.0" }, "no address that other peers can reach"},
		{"advertise among pods", func(c *Config) { c.Advertise = "10.40.0.1" }, "lies inside --cluster-cidr"},
		{"address without host", func(c *Config) { c.Addresses = []string{":7443"} }, "address"},
		{"address with a bad port", func(c *Config) { c.Addresses = []string{"a:http"} }, "no port between"},
		{"zone", func(c *Config) { c.Zone = "a b" }, "--zone"},
		{"voters", func(c *Config) { c.Voters = 5 }, ""},
		{"an even number of voters", func(c *Config) { c.Voters = 4 }, "--voters must be 3 or 5, not 4"},
		{"containerd", func(c *Config) { c.Containerd = "containerd.sock" }, "--containerd"},
		{"cluster range no range", func(c *Config) { c.ClusterCIDR = "10.0.0.1" }, "--cluster-cidr"},
		{"cluster range IPv6", func(c *Config) { c.ClusterCIDR = "fd00::/64" }, "not an IPv4 range"},
		{"cluster range with host bits", func(c *Config) { c.ClusterCIDR = "10.1.2.3/16" }, "write 10.1.0.0/16"},
		{"cluster range too small", func(c *Config) { c.ClusterCIDR = "10.1.0.0/25" }, "too small"},
		{"service range too small", func(c *Config) { c.ServiceCIDR = "10.1.0.0/30" }, "--service-cidr"},
		{"ranges overlap", func(c *Config) { c.ClusterCIDR, c.ServiceCIDR = "10.0.0.0/8", "10.96.0.0/16" }, "overlap"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := complete(t, c.change).ValidateFlags()
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestDefaults(t *testing.T) {
	config, err := Config{Addresses: []string{"10.0.0.1", "[2001:db8::1]", "b:1"}}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(config.Addresses, " "); got != "10.0.0.1:7443 [2001:db8::1]:7443 b:1" {
		t.Errorf("addresses %s", got)
	}
	if config.DataDir != DefaultDataDir || config.Port != DefaultPort || config.Name == "" || !config.nameFromHost {
		t.Errorf("%+v", config)
	}
}
