"""Files of a dataset on their way in: pictures, annotations, captions that are held out, and what is damaged in them."""
