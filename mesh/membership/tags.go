package membership

import "strconv"

// Tags are what a peer says about itself. Encoded they must fit into 512 bytes: identity only, no state.
type Tags struct {
	Zone          string // topology.kubernetes.io/zone
	Version       string // of the peer's program
	WireGuardPort uint16 // UDP port of its tunnel
	WireGuardKey  string // public key of its tunnel, base64
}

const (
	tagName, tagZone, tagVersion      = "name", "zone", "version"
	tagWireGuardPort, tagWireGuardKey = "wgport", "wgkey"
)

func (t Tags) encode(name string) map[string]string {
	tags := map[string]string{tagName: name}
	for key, value := range map[string]string{tagZone: t.Zone, tagVersion: t.Version, tagWireGuardKey: t.WireGuardKey} {
		if value != "" {
			tags[key] = value
		}
	}
	if t.WireGuardPort != 0 {
		tags[tagWireGuardPort] = strconv.Itoa(int(t.WireGuardPort))
	}
	return tags
}

func decodeTags(tags map[string]string) Tags {
	port, err := strconv.ParseUint(tags[tagWireGuardPort], 10, 16)
	if err != nil { // absent, or from a program that means something else by it
		port = 0
	}
	return Tags{
		Zone: tags[tagZone], Version: tags[tagVersion],
		WireGuardPort: uint16(port), WireGuardKey: tags[tagWireGuardKey],
	}
}
