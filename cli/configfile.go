package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"go.yaml.in/yaml/v3"
)

// configFile is a flag that names a file with values for the other flags.
// Whatever stands on the command line wins over the file.
type configFile string

// BeforeResolve reads the file once the command line is known.
func (configFile) BeforeResolve(ctx *kong.Context, trace *kong.Path) error {
	path := string(ctx.FlagValue(trace.Flag).(configFile))
	entries, err := readConfig(path)
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, group := range ctx.Selected().AllFlags(true) {
		for _, flag := range group {
			known[flag.Name] = true
		}
	}
	values := map[string]any{}
	for _, entry := range entries {
		if !known[entry.key] || entry.key == trace.Flag.Name || entry.key == "help" {
			return fmt.Errorf("%s, line %d: there is no flag --%s", path, entry.line, entry.key)
		}
		if _, twice := values[entry.key]; twice {
			return fmt.Errorf("%s, line %d: %s is given twice", path, entry.line, entry.key)
		}
		values[entry.key] = entry.value
	}
	ctx.AddResolver(kong.ResolverFunc(func(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
		return values[flag.Name], nil
	}))
	return nil
}

// entry is one top-level key of a configuration file.
type entry struct {
	key   string
	value any // string, list or map, as kong's resolvers give them
	line  int
}

// readConfig reads TOML when the name says so, and YAML otherwise.
func readConfig(path string) ([]entry, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	defer file.Close()
	const limit = 1 << 20
	text, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	if len(text) > limit {
		return nil, fmt.Errorf("configuration file %s is larger than 1 MiB", path)
	}
	var entries []entry
	if strings.EqualFold(filepath.Ext(path), ".toml") {
		entries, err = readTOML(text)
	} else {
		entries, err = readYAML(text)
	}
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	return entries, nil
}

func readYAML(text []byte) ([]entry, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(document.Content) == 0 { // empty, or comments only
		return nil, nil
	}
	mapping := document.Content[0]
	if mapping.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: flags by name are expected, such as `name: web-1`", mapping.Line)
	}
	var entries []entry
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		key := mapping.Content[i]
		var value any
		if err := mapping.Content[i+1].Decode(&value); err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", key.Line, key.Value, err)
		}
		checked, err := flagValue(value)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s %w", key.Line, key.Value, err)
		}
		entries = append(entries, entry{key: key.Value, value: checked, line: key.Line})
	}
	return entries, nil
}

func readTOML(text []byte) ([]entry, error) {
	values := map[string]any{}
	if err := toml.Unmarshal(text, &values); err != nil {
		var decode *toml.DecodeError
		if errors.As(err, &decode) {
			row, _ := decode.Position()
			return nil, fmt.Errorf("line %d: %w", row, err)
		}
		return nil, err
	}
	var entries []entry
	for _, key := range tomlKeys(text) {
		value, err := flagValue(values[key.key])
		if err != nil {
			return nil, fmt.Errorf("line %d: %s %w", key.line, key.key, err)
		}
		entries = append(entries, entry{key: key.key, value: value, line: key.line})
	}
	return entries, nil
}

// tomlKeys lists the top-level keys with their lines; the decoder forgets them.
func tomlKeys(text []byte) []entry {
	var parser unstable.Parser
	parser.Reset(text)
	var keys []entry
	seen := map[string]bool{}
	inTable := false
	for parser.NextExpression() {
		expression := parser.Expression()
		table := expression.Kind == unstable.Table || expression.Kind == unstable.ArrayTable
		if inTable && !table {
			continue
		}
		inTable = inTable || table
		parts := expression.Key()
		if !parts.Next() {
			continue
		}
		key := parts.Node()
		if name := string(key.Data); !seen[name] {
			seen[name] = true
			keys = append(keys, entry{key: name, line: parser.Shape(key.Raw).Start.Line})
		}
	}
	return keys
}

// flagValue turns a value of the file into what kong reads from a resolver:
// text, a list of texts, or a map of texts.
func flagValue(value any) (any, error) {
	switch v := value.(type) {
	case nil:
		return nil, errors.New("has no value")
	case []any:
		texts := make([]any, len(v))
		for i, item := range v {
			text, err := scalar(item)
			if err != nil {
				return nil, err
			}
			texts[i] = text
		}
		return texts, nil
	case map[string]any:
		texts := map[string]any{}
		for key, item := range v {
			text, err := scalar(item)
			if err != nil {
				return nil, err
			}
			texts[key] = text
		}
		return texts, nil
	default:
		return scalar(v)
	}
}

func scalar(value any) (string, error) {
	switch value.(type) {
	case string, bool, int, int64, uint64, float64:
		return fmt.Sprint(value), nil
	}
	return "", errors.New("must be a text, a number, or a list or map of these")
}
