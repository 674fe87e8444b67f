from embargo.events import Kind as Kind
